// Package chaos has the tests that break everything around Tierflow while it works: processes, servers, connections,
// streams, disks and clocks. Some faults end what they hit. Others leave it there: a disk hangs, is read-only, away or full, a
// server has no memory left or refuses. After each fault everything must settle. A model that knows every post then says
// whether a count was lost, applied twice or applied in the wrong order. A reader checks all the time that each file is where
// its row says, on all tiers that are there.
//
// The faults of disks need root and loop devices, that of Redis' clock needs gcc. Without them, the tests say so and leave
// those faults out.
//
// Random mixes for an hour (the machine needs redis-server and a MySQL server; a failure prints the seed):
//
//	go test -race ./scripts/tests/chaos -run Random/one -for 1h -timeout 2h
//	go test -race ./scripts/tests/chaos -run Random/six -for 1h -timeout 2h    # six nodes
package chaos
