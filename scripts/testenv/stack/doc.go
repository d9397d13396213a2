// Package stack runs the whole of Tierflow on one machine, as an operator would: the three services as real
// processes with their settings in the environment, tiers as folders, on servers that the caller names. It uses
// them only from outside (HTTP, Redis, MySQL, files, signals) and checks the result. The quickstart, the end-to-end
// tests and the benchmarks use it.
//
// Every process that it starts dies with the process that started it.
package stack
