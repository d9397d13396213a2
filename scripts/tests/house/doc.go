// Package house has the tests of the rules of the house: who imports whom, and that what the docs name exists.
package house
