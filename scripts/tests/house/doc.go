// Package house has the tests of the rules of the house: which package may import which, who writes which column, which
// words are retired, and that what the docs name exists.
package house
