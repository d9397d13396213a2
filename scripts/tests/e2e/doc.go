// Package e2e has the end-to-end tests. They run the real programs on real servers and real files, and look at them only
// from outside.
package e2e
