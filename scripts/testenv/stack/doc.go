// Package stack runs the whole of Tierflow on one machine, as an operator would. The three services are real
// processes with their settings in the environment. Tiers are folders, and the caller names the servers. It
// uses them only from outside (HTTP, Redis, MySQL, files, signals) and checks the result. The quickstart, the
// end-to-end tests and the benchmarks use it.
//
// Every process that it starts dies with the process that started it.
package stack
