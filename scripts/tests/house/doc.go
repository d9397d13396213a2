// Package house has the tests of the rules of the house: which package may import which, and that what the docs name
// exists.
package house
