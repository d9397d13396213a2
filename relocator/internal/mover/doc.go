// Package mover makes, releases and sweeps the copies of items on tiers: steps 4, 8 and 9 of the relocation protocol
// (docs/design.md), as far as they concern files. It touches files of tiers only, and only through package fsys. It
// knows neither Redis nor MySQL: the caller passes in functions for what the protocol needs of them.
//
// The order is make before break. Make ends when the new copy is complete, checked, durable and visible under its
// name. Only then may the row in MySQL change, and only after that may Release remove the old copy. Everything that a
// crash can leave behind lies in .tierflow/tmp or .tierflow/released and has the name of its attempt. Another process
// can therefore tell what it is.
//
// # Steps
//
// Every file operation carries the name of its step. This table says what is left when the process dies right after a
// step, and what removes it:
//
//	step              a crash after it leaves                                what removes it
//
//	Make
//	open-source       nothing
//	clear-released    nothing (the old copy of a releaser is gone, and no
//	                  row names it)
//	look-target       nothing
//	fsync-adopted     the copy that was there before                         the next attempt adopts it
//	read-adopted      the same                                               the next attempt adopts it
//	link-temp         a second name of the source in tmp/                    Sweep
//	fsync-record      a durable name in tmp/: of a file with its bytes, or   Sweep
//	                  of a complete directory
//	fsync-source      the same                                               Sweep
//	make-attempt      an empty folder in tmp/                                Sweep
//	make-tree         a tree without its files in tmp/                       Sweep
//	create-temp       an empty file in tmp/                                  Sweep
//	clone             a clone in tmp/, perhaps not durable                   Sweep
//	reserve           a file of zeros in tmp/                                Sweep
//	read-source       a part of the copy in tmp/                             Sweep
//	write-temp        the same                                               Sweep
//	start-writeback   the same                                               Sweep
//	set-metadata      a complete copy in tmp/, perhaps not durable           Sweep
//	fsync-temp        a complete, durable copy in tmp/                       Sweep
//	drop-cache        the same                                               Sweep
//	read-back         the same, checked                                      Sweep
//	fsync-tree        the same, of a folder                                  Sweep
//	recheck-source    the same; the source did not change meanwhile          Sweep
//	recheck-tier      the same                                               Sweep
//	make-folder       also an empty folder in tmp/ or above the final name,  Sweep; or the next attempt uses it, and
//	                  with its owner, mode and attributes                    the release of its last item removes it
//	publish           the copy under its name, perhaps not durable, and its  Sweep reports the stray, and the releaser
//	                  record in tmp/                                         removes it if no row names it by then; or
//	                                                                         the next attempt adopts it
//	fsync-folder      the same, durable                                      the same
//	fsync-attempt     the same, of a directory                               the same
//
//	Discard
//	remove-temp       the copy, which was emitted or reported as a stray     nothing has to
//
//	Release
//	mkdir-released    an empty folder in released/: a new one, that of an    Sweep, or the next Make; the next job that
//	                  attempt that is over, or the tier's reserve            opens the tier makes a new reserve
//	look-released     the same, and the row has a higher generation          Sweep, or the next Make
//	read-released     the same                                               Sweep, or the next Make
//	rename-released   the old copy in released/; its old name is gone,       Sweep, or the next Make; the entry is not
//	                  perhaps not durably                                    acked, so Release runs again: Gone
//	delete-released   a part of it, or nothing                               the same
//	rmdir-parent      nothing; the name is gone, perhaps not durably         the next Release makes it durable
//	fsync-emptied     nothing                                                nothing has to
//	fsync-released    nothing                                                nothing has to
//
//	Sweep
//	sweep             what it has not removed yet, perhaps under a name      the next Sweep
//	                  that ends with -swept
//
// Moves that are under way at the same time share syncs: one sync of a folder that all use, or one syncfs (fsys.Syncs).
// A step of the table has ended when the step after its group begins.
//
// Only complete, durable and checked copies get an item's own name: files by link, directories by rename.
//
// fsync-source comes after link-temp where the source is linked, and after read-back where it is copied.
//
// # Races
//
// A late releaser cannot remove a copy that a mover publishes. The releaser makes its folder in released/ and then
// raises the generation. If it did both after the mover's look-up of the row, the mover cannot commit. If it made the
// folder earlier, the mover has removed the folder, because it clears released/ after its look-up. The releaser's
// rename then fails.
//
// A late mover cannot replace anything, because names are only added. What it adds stays recorded in tmp/ until the mover
// or the sweep has reported it.
//
// A sweep that meets a living attempt removes its temporary in one step, so that the attempt cannot publish a part of
// it. The attempt then fails with fault.Lost.
package mover
