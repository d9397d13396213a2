// Package powercut holds tests only: it cuts the power at every step of a move and looks what is left.
//
// # How
//
// The tiers lie on real file systems (ext4, XFS, btrfs) in images behind loop devices. The real mover runs with a
// hook, which stops it before every operation and copies the images in one step: what the disk has received by then
// is what a power cut leaves, what was not synced is gone. Every copy is one cut, after one operation and before the
// next. Where no disk has received anything since the cut before, the two are the same cut and are checked once.
// Afterwards the copies are mounted, the file systems replay their logs, and
//
//   - before anything else runs, the file that the row names is read: G1;
//   - what has the content's name on another tier must be whole as well: nothing partial is ever visible;
//   - where everything was settled at the cut, G2 must hold without any recovery;
//   - then the entries that were not settled are delivered again, in memory, to the real mover: the view event with a
//     new token, commit, release, sweep. Twice, as if every ack of the first time had been lost. Then G2: one copy,
//     where the newest event wants it, nothing in tmp/ and released/.
//
// MySQL and Redis are taken to survive with what they had acknowledged; the row and the entries are plain values here.
// Where several states of them can belong to one state of the disks (committed or not yet, emit refused, superseded by
// a newer event meanwhile), each is checked.
//
// A disk that is left alone keeps everything back that was not synced. A busy one does not: in some scenarios somebody
// else makes the file system write its journal at every step, so that names get to the disk before the bytes do.
//
// # Sources that nobody has synced
//
// Most uploaders never call fsync, and a cut may take what they wrote. That is the uploader's loss, with or without
// a move, for as long as the row names the place where it was written; Tierflow promises from its commit on. So, for
// such a source: until the commit, what the row names may be damaged. From the emit on the content is safe all the
// same: the copy is durable, and so is the entry that commits it (a sweep takes the copy for a stray only if that
// commit does not come within the time after which a temporary counts as old). Before the emit, what the row names
// after a recovery is either the content as it was uploaded, or what the cut has left of it. For a file that time is
// over before anything is published: the mover syncs the source, linked or copied, so that a durable copy never differs
// from a source that a cut has damaged. Of a directory it syncs the files, not the folders, which are the uploader's:
// where the two tiers differ then, the view event ends in `dead` as a conflict, and the copy that was not emitted as
// well, as changed (worker.Releaser); here it counts as cleared.
//
// In the same way, a copy that an operator has put at the target is his until the mover has adopted and synced it.
//
// # Mutants
//
// A test that finds nothing proves little. So each fsync is left out in turn, and rules of the order are broken; the
// suite fails when it does not find out. What no file system here shows is listed with its reason, is run as well, and
// is printed with -v as not observable here. These fsyncs stay: POSIX promises less than these three file systems do.
//
// # Limits
//
// A cut falls between two operations, never into one. Everything the loop device has received counts as durable,
// in the order in which it came: a drive that loses its cache, or reorders writes between two flushes, is not
// simulated. Network file systems are not tested.
//
// The tests need root, loop devices, xfsprogs, btrfs-progs and e2fsprogs, and fail where these are missing. They mount
// in a namespace of their own. TIERFLOW_TEST_NO_LOOP_DEVICES=1 leaves them out; no test that counts sets it.
package powercut
