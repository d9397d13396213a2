# Sourced by the scripts: handles their arguments.

# usage prints the comment at the head of the script.
usage() { sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; }

# refuse ARGUMENT: ends the script because it does not know the argument.
refuse() {
	{ echo "${0##*/}: unknown argument: $1"; echo; usage; } >&2
	exit 2
}

# no_arguments "$@": for a script that takes none but --help.
no_arguments() {
	case ${1:-} in
	'') [ $# = 0 ] || refuse "''" ;;
	-h | --help) usage; exit ;;
	*) refuse "$1" ;;
	esac
}

# go_test_flags "$@": for a script that passes its arguments on to go test.
go_test_flags() {
	while [ $# -gt 0 ]; do
		case $1 in
		-h | --help) usage; exit ;;
		-run | -skip | -count | -cpu | -parallel | -shuffle | -timeout)
			[ $# -gt 1 ] || refuse "$1 without a value"
			shift
			;;
		-run=* | -skip=* | -count=* | -cpu=* | -parallel=* | -shuffle=* | -timeout=* | -short | -failfast | -v) ;;
		*) refuse "$1" ;;
		esac
		shift
	done
}
