// Package house has the tests of the rules of the house. They say which package may import which, who writes which column,
// and which words are retired. What the docs name must exist.
package house
