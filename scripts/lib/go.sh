# Sourced by the scripts: finds Go and makes sure that it can work. $root is the clone.

need=1.26

# Without a home folder Go has no place for its caches. Take one that stays, so that the next run is quick.
if [ -z "${HOME:-}" ] || ! [ -w "$HOME" ]; then
	HOME=${TMPDIR:-/tmp}/tierflow-home-$(id -u)
	mkdir -p -m 700 "$HOME"
	if ! [ -O "$HOME" ]; then
		echo "$HOME belongs to somebody else: set HOME to a folder that you may write to" >&2
		exit 1
	fi
	export HOME
fi

go=$(command -v go || echo /usr/local/go/bin/go)
if ! [ -x "$go" ]; then
	echo "Tierflow is built on this machine and needs Go $need or later: https://go.dev/dl" >&2
	exit 1
fi
PATH=$(dirname "$go"):$PATH
export PATH

# With GOTOOLCHAIN=auto an older go downloads a newer one here, and then prints the newer version.
version=$(cd "$root" && go env GOVERSION 2>&1) || version="$(go version) ($version)"
if ! printf '%s\n' "$version" | awk -F '[o.a-z]+' -v need="$need" '
	/^go[0-9]/ { split(need, n, "."); ok = $2 > n[1] || $2 == n[1] && $3 >= n[2] } END { exit !ok }'; then
	echo "Tierflow needs Go $need or later, this is $version: https://go.dev/dl" >&2
	exit 1
fi

# Asking git for a revision takes time, and fails if the clone belongs to another user.
GOFLAGS="${GOFLAGS:-} -buildvcs=false"
export GOFLAGS
