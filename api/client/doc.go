// Package client calls the HTTP API of Tierflow, and declares the JSON of it: the api itself answers with these types.
//
//	c := client.New(base, key)
//	accepted, err := c.PostView(ctx, client.View{CID: 7, Count: 1964})
//	var p *client.Problem
//	if errors.As(err, &p) && p.Kind() == fault.Unknown {
//		// no item has this cid
//	}
//
// openapi.yaml of the api describes every call. Times are RFC 3339 texts in UTC, with microseconds. The word content in
// paths and in JSON means an item: one row of the table contents. A field that is a pointer is null in JSON where it is nil.
package client
