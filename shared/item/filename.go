package item

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// Limits of a filename. The column holds 700 characters, at most 2,800 bytes, and a path of Linux 4,096 bytes (PATH_MAX).
// A component has at most 255 bytes (NAME_MAX).
const (
	MaxFilenameChars  = 700
	MaxComponentBytes = 255
)

// MetaFolder is the folder in every tier root that belongs to Tierflow. No item may lie in it.
const MetaFolder = ".tierflow"

// CheckFilename returns an error that says why name is not allowed as a filename. A filename is a clean relative path in
// UTF-8, within the limits above, outside MetaFolder, without NUL and without a trailing space. Tierflow compares bytes and
// never normalises them, because file systems treat NFC and NFD as two names.
func CheckFilename(name string) error {
	switch {
	case name == "":
		return errors.New("filename is empty")
	case !utf8.ValidString(name):
		return errors.New("filename is not UTF-8")
	case strings.ContainsRune(name, 0):
		return errors.New("filename contains a NUL byte")
	case name[0] == '/':
		return errors.New("filename is absolute: it must be relative to the tier's root")
	case name[len(name)-1] == '/':
		return errors.New("filename ends with a slash")
	case name[len(name)-1] == ' ':
		return errors.New("filename ends with a space, which SQL comparisons ignore")
	case utf8.RuneCountInString(name) > MaxFilenameChars:
		return fmt.Errorf("filename has %d characters, the limit is %d", utf8.RuneCountInString(name), MaxFilenameChars)
	}
	for i, c := range strings.Split(name, "/") {
		switch {
		case c == "":
			return errors.New("filename has an empty component (two slashes in a row)")
		case c == "." || c == "..":
			return fmt.Errorf("filename has the component %q", c)
		case len(c) > MaxComponentBytes:
			return fmt.Errorf("filename has a component of %d bytes, the limit is %d", len(c), MaxComponentBytes)
		case i == 0 && c == MetaFolder:
			return fmt.Errorf("filename begins with %s, which belongs to Tierflow", MetaFolder)
		}
	}
	return nil
}
