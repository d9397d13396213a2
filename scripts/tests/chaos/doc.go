// Package chaos has the tests that break everything around Tierflow while it works: processes, servers, connections,
// streams. After each of them everything must settle, and a model that knows every post says whether a count was lost,
// done twice or done in the wrong order; a reader looks all the time whether each file is where its row says.
//
// Random mixes for an hour (the machine needs redis-server and a MySQL server; a failure prints the seed):
//
//	go test -race ./scripts/tests/chaos -run Random/one -for 1h -timeout 2h
//	go test -race ./scripts/tests/chaos -run Random/six -for 1h -timeout 2h    # six nodes
package chaos
