package fsys

// Step names one operation that can fail or be cut short. Hooks, error messages and the step table in the documentation
// of package mover use the same names.
type Step string

// Steps of opening, checking and making a tier (package tier).
const (
	OpenTier       Step = "open-tier"
	ReadIdentity   Step = "read-identity"
	MakeTierFolder Step = "make-tier-folder" // the root, .tierflow, tmp or released
	SyncTierFolder Step = "fsync-tier-folder"
	WriteIdentity  Step = "write-identity"
	SyncIdentity   Step = "fsync-identity"
	LinkIdentity   Step = "link-identity"
	DropIdentity   Step = "drop-identity" // removes the temporary name of the identity
	ProbeLink      Step = "probe-link"
	ProbeUnlink    Step = "probe-unlink"
	ProbeWrite     Step = "probe-write"
	ProbeFsync     Step = "probe-fsync"
	LookSpace      Step = "look-tier-space"    // how full its file system is
	LookWritable   Step = "look-tier-writable" // whether it takes writes
	ProbeNames     Step = "probe-names"        // what the file system takes for one name, and whether it renames without replacing
)

// Steps of a move.
const (
	OpenSource     Step = "open-source"
	ClearReleased  Step = "clear-released" // removes the folders of late releasers
	LookTarget     Step = "look-target"    // looks whether the final name is taken
	LinkTemp       Step = "link-temp"
	FsyncSource    Step = "fsync-source"
	MakeAttempt    Step = "make-attempt" // the attempt's folder, for a directory
	MakeTree       Step = "make-tree"    // a folder inside the attempt's folder
	CreateTemp     Step = "create-temp"
	Clone          Step = "clone"
	Reserve        Step = "reserve"
	ReadSource     Step = "read-source"
	WriteTemp      Step = "write-temp"
	StartWriteback Step = "start-writeback"
	SetMetadata    Step = "set-metadata"
	FsyncTemp      Step = "fsync-temp"
	DropCache      Step = "drop-cache"
	ReadBack       Step = "read-back"
	RecheckSource  Step = "recheck-source"
	FsyncTree      Step = "fsync-tree" // a folder inside the attempt's folder
	FsyncRecord    Step = "fsync-record"
	RecheckTier    Step = "recheck-tier"
	MakeFolder     Step = "make-folder" // a folder above the final name
	Publish        Step = "publish"
	FsyncFolder    Step = "fsync-folder" // the folders above the final name
	FsyncAttempt   Step = "fsync-attempt"
	FsyncAdopted   Step = "fsync-adopted"
	ReadAdopted    Step = "read-adopted"
	RemoveTemp     Step = "remove-temp"
)

// Steps of a release, and of the sweep.
const (
	MkdirReleased  Step = "mkdir-released"
	LookReleased   Step = "look-released"
	ReadReleased   Step = "read-released" // compares an old copy that may have changed with the copy that the row names
	RenameReleased Step = "rename-released"
	DeleteReleased Step = "delete-released"
	RmdirParent    Step = "rmdir-parent"
	FsyncEmptied   Step = "fsync-emptied" // the folder that held the old copy
	FsyncReleased  Step = "fsync-released"
	Sweep          Step = "sweep"
	ReadDigest     Step = "read-digest" // verify reads a file or folder
)
