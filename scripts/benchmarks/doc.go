// Package benchmarks compares Tierflow with what a user could take instead, or with the best that the machine can do. It
// measures both on the same machine in the same run: ./scripts/bench. Every measurement checks its results. A part
// (ingest, moves, ...) starts the servers that it needs and compares cases; the package does rounds, ratios and the table.
package benchmarks
