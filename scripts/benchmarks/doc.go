// Package benchmarks measures Tierflow against what a user could take instead, or against what the machine can do at
// best, on this machine and in one run: ./scripts/bench. Every measurement checks its results. A part (ingest, moves,
// ...) starts the servers that it needs and compares cases; the package does the rest: rounds, ratios, the table.
package benchmarks
