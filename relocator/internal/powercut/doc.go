// Package powercut holds tests only: it cuts the power at every step of a move and checks what is left.
//
// # How
//
// The tiers lie on real file systems (ext4, XFS, btrfs) in images behind loop devices. The real mover runs with a hook
// that stops it before every operation and clones the images in one step. The clone holds what the disk has received
// so far, as after a power cut; data that was not synced is missing. Every clone is one cut, after one operation and
// before the next. Where no disk has received anything since the last cut, the two cuts are equal and are checked once.
//
// The tests then mount the clones, the file systems replay their journals, and
//
//   - first, before anything else runs, the file that the row names must be complete: G1;
//   - a file that has the item's name on the other tier must be complete as well: nothing partial is ever visible;
//   - where all entries were settled at the cut, G2 must hold without a recovery;
//   - then the entries that were not settled are delivered again, in memory, to the real mover: the view event with a
//     new token, commit, release and sweep. This runs twice, as if every ack of the first time had been lost. Then G2
//     must hold: one copy, on the level that the newest event calls for, and nothing in tmp/ and released/.
//
// The tests assume that MySQL and Redis keep what they have acknowledged. The row and the entries are plain values here.
// Several states of them can go with one state of the disks: committed or not yet, emit refused, or superseded by a
// newer event. Each of these is checked.
//
// An idle file system keeps everything back that was not synced. A busy one does not. In some scenarios another process
// makes the file system write its journal at every step, so that names reach the disk before the bytes.
//
// # Sources that nobody has synced
//
// Most uploaders never call fsync, and a power cut may take what they wrote. With or without a move, that is the
// uploader's loss as long as the row names the place of the upload. Tierflow's promise begins with its commit. For such
// a source the tests therefore demand:
//
//   - Until the commit, the file that the row names may be damaged.
//   - From the emit on, the item is safe all the same. The copy is durable, and so is the entry that commits it. (A
//     sweep reports the copy as a stray only if that commit does not come before the temporary counts as old.)
//   - Before the emit, the file that the row names after a recovery is either the item as it was uploaded, or what the
//     cut has left of it.
//
// The mover syncs a source file, linked or copied, before it publishes the copy. A durable copy therefore never
// differs from a source that a cut has damaged. In a directory, the mover syncs the files but not the folders,
// which belong to the uploader. Where the two tiers differ then, the view event becomes a dead letter as a
// conflict. A copy that was not emitted becomes a dead letter as changed (package release). The tests count both as
// cleared.
//
// In the same way, a copy that an operator has put on the target is the operator's until the mover has adopted and
// synced it.
//
// # Mutants
//
// A test that finds nothing proves little. So the tests skip each fsync in turn, break each rule of the order, and fail
// where no cut shows a violation. Some mutants cannot be observed on these file systems. The list gives the reason for
// each of them; they run as well, and -v prints them as not observable here. Their fsyncs stay, because POSIX promises
// less than these three file systems do.
//
// # Limits
//
// A cut falls between two operations, never into one. Everything that the loop device has received counts as durable, in
// the order in which it came. The tests do not simulate a drive that loses its cache, or that reorders writes between
// two flushes. Network file systems are not tested.
//
// The tests need root, loop devices, xfsprogs, btrfs-progs and e2fsprogs, and fail where these are missing. They mount
// in a private mount namespace. TIERFLOW_TEST_NO_LOOP_DEVICES=1 skips them; no test run that counts sets it.
package powercut
