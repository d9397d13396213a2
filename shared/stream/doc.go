// Package stream consumes one stream as one consumer of one group. It knows nothing of items and tiers.
//
// What it promises. The handler gets each entry at least once. The entry stays pending until the handler's own script has
// acked it. The ack belongs in the step that makes the entry's effect durable, so this package acks no entry that a
// handler can settle. An unsettled entry is unread or pending in the group, also while it waits for a back-off. There is
// no other queue, so XPENDING shows everything, and a restart forgets nothing.
//
//	unread ──XREADGROUP──▶ in hand ──handler──▶ settled
//	pending of a dead consumer ──XAUTOCLAIM──▶ ▲ │
//	pending here, but not known ──adopt──▶     │ ▼ Failed, Later, Await, Alone
//	                                         parked (pending until it is due, until Wake, or until it has a slot alone)
//
// Why it works this way:
//   - It never reads more than it can begin at once, so a slow worker holds no entry that others could work on. Entries that
//     wait for a limit of their handler are read in advance, up to 512: behind them may be some that need not wait.
//   - A handler may get a batch. What takes long, it sets apart (Alone): such an entry gets a handler alone, which has another
//     kind of slot. So a slow entry holds up neither the rest of its batch nor the next batches. Entries that were set apart may
//     wait here for a slot. When as many wait as there are such slots, it reads no new ones.
//   - An entry that waits for Wake (Await) begins once, when Wake is called. Meanwhile it costs Redis only its heartbeat.
//   - A lost reply of XREADGROUP leaves entries pending with this consumer that it has not seen. It compares the pending
//     list with what it knows, and adopts them.
//   - The heartbeat renews an entry only while this consumer has it: a bare XCLAIM would take it back from another. The
//     handler must also report progress, or have said that it makes a call that cannot (Delivery.Working). The loss of an
//     entry cancels its handler's context.
//   - One consumer of a group at a time calls XAUTOCLAIM (walk.go), until the end of the pending list. XAUTOCLAIM looks at ten
//     entries for each that it may return, so an empty page does not mean that the list is over. It takes 1.5 s for a million
//     entries. So the consumer reads new entries between its steps, and at every second turn where it claims something. It
//     logs an error for each entry that XAUTOCLAIM reports as deleted.
//   - The number of attempts is the entry's delivery count. A sorted set records when a failed entry is due, until its next
//     attempt begins. So a back-off continues after a restart, also with another consumer. The set is not a queue: without
//     it, entries come back sooner.
//   - A crash counts as an attempt, because the entry may have crashed its worker. It does not count while the entry waits:
//     for its back-off, for Wake, for a slot alone, or for longer than ten seconds. Such an entry has a delivery count of one
//     less until it is begun again, because a take-over adds one. An entry that a consumer gives back has made no attempt.
//     After a crash, entries come back within MinIdle.
//   - A handler that hangs in a system call keeps no slot (Hangs), and a stop does not wait for it.
//   - BLOCK is always finite, because go-redis does not interrupt a blocked read when its context ends.
//   - A stream is trimmed below the entries that every group has settled, and never by length. Some settled entries stay, so
//     that the live view can show them.
package stream
