"""A FUSE file system that shows a folder and takes several spellings of a name for one.

usage: folding.py MODE FOLDER MOUNTPOINT

MODE is case (as on APFS and ext4 with chattr +F: names keep their spelling), forms (NFC and NFD are one, as on ZFS with
normalization=formC) or rewrite (names are stored as NFD, as on HFS+). It has no RENAME_NOREPLACE, as most FUSE file
systems.
"""
import errno
import os
import sys
import unicodedata

import fusepy as fuse

KEYS = {
    "case": lambda name: unicodedata.normalize("NFC", name).casefold(),
    "forms": lambda name: unicodedata.normalize("NFC", name),
    "rewrite": lambda name: unicodedata.normalize("NFC", name),
}


class Folding(fuse.Operations):
    def __init__(self, mode, root):
        self.key, self.mode, self.root = KEYS[mode], mode, root

    def real(self, path):
        """Returns the path below, with the spelling that each folder has for its entry."""
        at = self.root
        for name in path.strip("/").split("/"):
            if not name:
                continue
            if self.mode == "rewrite":
                name = unicodedata.normalize("NFD", name)
            here = os.path.join(at, name)
            if not os.path.lexists(here) and os.path.isdir(at):
                for other in os.listdir(at):
                    if self.key(other) == self.key(name):
                        here = os.path.join(at, other)
            at = here
        return at

    def getattr(self, path, fh=None):
        st = os.fstat(fh) if fh is not None else os.lstat(self.real(path))
        fields = ("mode", "nlink", "uid", "gid", "size", "ino", "blocks")
        attrs = {"st_" + f: getattr(st, "st_" + f) for f in fields}
        attrs.update(st_atime=st.st_atime_ns, st_mtime=st.st_mtime_ns, st_ctime=st.st_ctime_ns)
        return attrs

    def readdir(self, path, fh):
        return [".", ".."] + os.listdir(self.real(path))

    def mkdir(self, path, mode):
        os.mkdir(self.real(path), mode)

    def rmdir(self, path):
        os.rmdir(self.real(path))

    def unlink(self, path):
        os.unlink(self.real(path))

    def rename(self, old, new):
        os.rename(self.real(old), self.real(new))

    def link(self, target, source):
        os.link(self.real(source), self.real(target))

    def chmod(self, path, mode):
        os.chmod(self.real(path), mode)

    def chown(self, path, uid, gid):
        os.chown(self.real(path), uid, gid)

    def utimens(self, path, times=None):
        os.utime(self.real(path), ns=times)

    def truncate(self, path, length, fh=None):
        os.truncate(self.real(path), length)

    def create(self, path, mode, fi=None):
        return os.open(self.real(path), os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)

    def open(self, path, flags):
        return os.open(self.real(path), flags & ~(os.O_NOFOLLOW | os.O_CREAT))

    def read(self, path, size, offset, fh):
        return os.pread(fh, size, offset)

    def write(self, path, data, offset, fh):
        return os.pwrite(fh, data, offset)

    def release(self, path, fh):
        os.close(fh)

    def fsync(self, path, datasync, fh):
        os.fsync(fh)

    def statfs(self, path):
        st = os.statvfs(self.root)
        answer = {f: getattr(st, f) for f in ("f_bavail", "f_bfree", "f_blocks", "f_frsize", "f_namemax")}
        answer["f_bsize"] = 256 * st.f_frsize  # blocks are counted in f_frsize; network file systems want large reads
        return answer

    def listxattr(self, path):
        raise fuse.FuseOSError(errno.EOPNOTSUPP)

    def getxattr(self, path, name, position=0):
        raise fuse.FuseOSError(errno.EOPNOTSUPP)


Folding.use_ns = True
fuse.FUSE(Folding(sys.argv[1], sys.argv[2]), sys.argv[3], foreground=True, nothreads=True, use_ino=True,
          allow_other=True, entry_timeout=0, attr_timeout=0, negative_timeout=0, default_permissions=True)
