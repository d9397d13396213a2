// Package localserver starts private, real Redis and MySQL (or MariaDB) servers out of what the machine has
// installed. Each listens on loopback, and has a port and a folder of its own. It needs neither Docker nor
// root. Its importers are the quickstart, the test command and testserver.
//
// A server dies with the process that started it, even when that process is killed with SIGKILL.
package localserver
