// Package e2e has the end-to-end tests: they run the real programs on real servers and real files, and look at them
// from outside only.
package e2e
