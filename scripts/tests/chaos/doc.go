// Package chaos has the tests that break everything around Tierflow while it works: processes, servers, connections,
// streams. After each fault everything must settle. A model that knows every post then says whether a count was lost,
// applied twice or applied in the wrong order. A reader checks all the time that each file is where its row says.
//
// Random mixes for an hour (the machine needs redis-server and a MySQL server; a failure prints the seed):
//
//	go test -race ./scripts/tests/chaos -run Random/one -for 1h -timeout 2h
//	go test -race ./scripts/tests/chaos -run Random/six -for 1h -timeout 2h    # six nodes
package chaos
