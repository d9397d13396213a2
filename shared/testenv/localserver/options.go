package localserver

// Options say where a server has its data and how durable that is. The zero value is a throw-away server.
type Options struct {
	// Dir is the server's own folder, for its data and its log. It is made if it does not exist. A server that
	// is started in the folder of an earlier one continues with its data. "" makes a folder in the system's
	// temporary folder.
	Dir string

	// Binary is the server's program; "" takes what FindRedis or FindMySQL finds. For MySQL it may be a
	// script that execs the server: then the folder root/usr beside it, if there is one, is its basedir.
	Binary string

	// Port is the port on 127.0.0.1; 0 takes a free one.
	Port int

	// AppendFsync is Redis' appendfsync: "always", "everysec" (the default) or "no". With each of them, answered
	// writes survive Kill. They differ only in what a crash of the machine loses.
	AppendFsync string

	// Durable makes MySQL sync every commit to the disk. Without it, commits survive Kill, but not a crash
	// of the machine, and tests run several times faster.
	Durable bool

	// Announce is for the nodes of a cluster. It gets a node's address before the node starts. It returns the port by which
	// others shall know the node, such as that of a proxy in front. nil: its own.
	Announce func(addr string) (port int, err error)

	// Arguments are further arguments of the server's program.
	Arguments []string
}
