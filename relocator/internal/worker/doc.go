// Package worker joins the mover to Redis and MySQL: Relocator does steps 2 to 5 of the protocol for entries of
// `views`, Releaser step 8 for entries of `committed`, Sweeper step 9. It talks, logs and counts; what is done to
// files is the mover's, what is one step in Redis is shared/state's.
//
// What ends how:
//
//	nothing to do, or done          the step's own script has acked the entry
//	somebody else is at work        Later: stays pending, no attempt
//	a server or a tier is away      Later: stays pending, no attempt; a tier that is away rests
//	failed                          Failed: the next attempt after a back-off, `dead` after the last
//	hopeless (shared/failure)       `dead` at once
//	lock or entry lost              nothing: somebody else does it
package worker
