// Package compose has the tests of docker-compose.yml: they run the whole of it in containers, as an operator does, and
// break it. ./scripts/test-compose starts them; without its flag they are not run.
package compose
