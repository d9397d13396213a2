// Package stack runs the whole of Tierflow on one machine, as an operator would: the three services as real
// processes with their settings in the environment, tiers as folders, on servers that the caller names. It drives
// them from outside only (HTTP, Redis, MySQL, files, signals) and checks what they made of it. The quickstart, the
// end-to-end tests and the benchmarks are built on it.
//
// Everything it starts dies with the process that started it.
package stack
