package catalog

// LockName is the name of the migrations' lock.
func LockName(c *Catalog) string { return lockName(c.cfg.DBName) }

const DueRows = dueRows
