// Package compose has the tests of docker-compose.yml. They run all of its services in containers, as an operator does, and
// break them. ./scripts/test-compose starts the tests; without its flag they do not run.
package compose
