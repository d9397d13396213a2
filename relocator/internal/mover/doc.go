// Package mover makes, releases and sweeps the copies of contents on tiers: steps 4, 8 and 9 of the relocation
// protocol, as far as they concern files. It knows nothing of Redis and MySQL; what it needs of them its caller
// hands in.
//
// The order is make before break. Make ends when the new copy is complete, checked, durable and visible under its
// name. Only then may the row in MySQL change, and only after that may Release take the old copy away. What can
// be left at any moment carries its attempt's name in .tierflow/tmp or .tierflow/released, so whoever comes later
// knows what it is.
//
// # Steps
//
// Every operation goes through package fsys and carries the name of its step. What a process leaves that dies
// right after a step, and who clears it:
//
//	step              a crash after it leaves                                who clears it
//
//	Make
//	open-source       nothing
//	clear-released    nothing (a releaser's copy that no row names is gone)
//	look-target       nothing
//	fsync-adopted     the copy that was there                                 the next attempt adopts it
//	read-adopted      the same                                                the next attempt adopts it
//	link-temp         a second name of the source in tmp/                     Sweep
//	fsync-record      what is in tmp/, under a durable name: a file together  Sweep
//	                  with its bytes, a directory when it is complete
//	fsync-source      the same                                                Sweep
//	make-attempt      an empty folder in tmp/                                 Sweep
//	make-tree         a tree without its files in tmp/                        Sweep
//	create-temp       an empty file in tmp/                                   Sweep
//	clone             a clone in tmp/, perhaps not durable                    Sweep
//	reserve           a file of zeros in tmp/                                 Sweep
//	read-source       a part of the copy in tmp/                              Sweep
//	write-temp        the same                                                Sweep
//	start-writeback   the same                                                Sweep
//	set-metadata      a whole copy in tmp/, perhaps not durable               Sweep
//	fsync-temp        a whole, durable copy in tmp/                           Sweep
//	drop-cache        the same                                                Sweep
//	read-back         the same, checked                                       Sweep
//	fsync-tree        the same, of a folder                                   Sweep
//	recheck-source    the same, of bytes that did not change meanwhile        Sweep
//	recheck-tier      the same                                                Sweep
//	make-folder       an empty folder in tmp/ as well, or above the final     Sweep; or the next attempt uses it, and
//	                  name, with its owner, mode and attributes               a release of its last content removes it
//	publish           the copy under its name, perhaps not durable, and its   Sweep reports the stray: the releaser
//	                  record in tmp/                                          clears it if no row names it by then;
//	                                                                          the next attempt adopts it
//	fsync-folder      the same, durable                                       the same
//	fsync-attempt     the same, of a directory                                the same
//
//	Discard
//	remove-temp       the copy, emitted or reported as a stray                nobody needs to
//
//	Release
//	mkdir-released    an empty folder in released/, made or, where releases   Sweep, or the next Make
//	                  overlap, taken over from an attempt that is over
//	look-released     the same, and the row's generation is higher            Sweep, or the next Make
//	read-released     the same                                                Sweep, or the next Make
//	rename-released   the old copy in released/; its name is gone, perhaps    Sweep, or the next Make; the entry is
//	                  not durably                                             not acked, so Release runs again: Gone
//	delete-released   part of it, or nothing                                  the same
//	rmdir-parent      nothing; the name is gone, perhaps not durably          the next Release makes it durable
//	fsync-emptied     nothing                                                 nobody needs to
//	fsync-released    nothing                                                 nobody needs to
//
//	Sweep
//	sweep             the rest of what it was removing                        the next Sweep
//
// Syncs are shared: moves that are under way at the same time wait for one sync of a folder they all use, or for one
// syncfs (fsys.Syncs). A step that is named here has ended when the one after the group begins.
//
// Nothing partial is ever under a content's own name: files get it by link, trees by rename, both whole, durable
// and checked before.
//
// fsync-source comes after link-temp where the source is linked, and after read-back where it is copied.
//
// # Races
//
// A late releaser cannot take what a mover publishes: it made its folder before it raised the generation. If it
// did both after the mover's look-up, the mover cannot commit; if it did either before, the mover, which clears
// released/ after its look-up, has taken the folder, and the rename finds nothing to rename into. A late mover
// cannot replace anything, since names are only ever added; what it adds stays recorded in tmp/ until it, or the
// sweep, has reported it. A sweep that meets a living attempt takes its temporary in one step, so that nothing
// partial can be published; the attempt then ends with fault.Lost.
package mover
