// Package stream consumes one stream as one consumer of one group. It knows no domain.
//
// What it promises. An entry is handed to the handler at least once, and stays pending until the handler's own
// script has acked it: acking belongs into the step that makes the entry's effect durable, so this package never
// acks what a handler has had. Whatever is not settled is unread or pending in the group; waiting for a back-off
// is pending too. There is no other queue, so XPENDING tells the whole truth, and a restart forgets nothing.
//
//	unread ──XREADGROUP──▶ in hand ──handler──▶ settled
//	pending of a dead consumer ──XAUTOCLAIM──▶ ▲ │
//	pending of ours that we forgot ──adopt──▶  │ ▼ Failed, Later
//	                                         parked (pending, its time comes)
//
// Why it is as it is:
//   - It never reads more than it can begin at once, so that a slow worker holds nothing that others could do.
//   - A lost reply of XREADGROUP leaves entries pending with us that we have not seen: we compare and adopt them.
//   - The heartbeat renews one entry at a time, only while it is still ours (a bare XCLAIM would steal it back) and
//     only while its handler reports progress. Losing an entry cancels its handler's context.
//   - XAUTOCLAIM is followed to the end of the pending list: it looks at ten entries for each that it may return, so
//     an empty page proves nothing. It takes 1.5 s for a million entries, so new ones are read between its steps,
//     and get every second turn where it claims something. Ids that it reports as deleted are an error that somebody must see.
//   - How often an entry was tried is its delivery count. When one that has failed is due, a sorted set remembers until its
//     next attempt begins, so back-off goes on where it was after a restart, whoever goes on with it. It is no queue: without
//     it, entries come back sooner.
//   - A crash counts as an attempt, because the entry may be what has crashed its worker; being handed back does not, nor
//     does a crash while the entry waits for its back-off. What a crash has left comes back within MinIdle.
//   - BLOCK is always finite: cancelling a context does not interrupt a blocked read.
//   - A stream is trimmed below what every group has settled and never by length, and keeps some settled entries for
//     those who look.
package stream
