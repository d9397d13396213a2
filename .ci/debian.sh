# Sourced by the scripts beside it: gets programs from Debian's packages, and does not change the machine's own packages.

# debian SUITE DIR: defines apt, an apt-get for this suite of the machine's own mirror, with its state in DIR/.apt.
# This apt treats no package as installed, so `install --download-only` downloads every library.
debian() {
	local codename
	state=$2/.apt
	codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
	mirror=$(apt-get indextargets --format '$(REPO_URI)' "Codename: $codename" 2>/dev/null | grep -v security | sort -u | head -n 1)
	[ -n "$mirror" ] || { echo "apt on this machine names no Debian mirror" >&2; return 1; }
	keyring=/usr/share/keyrings/debian-archive-keyring.gpg
	mkdir -p "$state/lists/partial" "$state/cache/archives/partial"
	: >"$state/status"
	echo "deb [signed-by=$keyring] $mirror $1 main" >"$state/sources.list"
	apt() {
		apt-get -qq -o Dir::Etc::sourcelist="$state/sources.list" -o Dir::Etc::sourceparts=/dev/null -o Dir::State="$state" \
			-o Dir::State::lists="$state/lists" -o Dir::State::status="$state/status" -o Dir::Cache="$state/cache" \
			-o APT::Install-Recommends=false -o APT::Sandbox::User= -o Debug::NoLocking=1 -o Acquire::Languages=none \
			-o Acquire::Check-Valid-Until=false "$@"
	}
	apt update
}
