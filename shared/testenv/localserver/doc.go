// Package localserver starts private, real Redis and MySQL (or MariaDB) servers out of what the machine has
// installed: on loopback, on a port of their own, in a folder of their own, without Docker and without root
// (as root it works too). Its importers are the quickstart, the test command and testserver.
//
// A server dies with the process that started it, even when that process is killed with SIGKILL.
package localserver
