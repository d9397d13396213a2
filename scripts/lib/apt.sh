# Sourced by the scripts: installs the programs that they use and the machine lacks.

# install_missing reads lines "program or file, any of several: packages" (Debian's names). It installs the packages of a
# line if the machine has none of its programs and files. It does not start installed servers as services of the machine.
install_missing() (
	missing=()
	while IFS=: read -r any packages; do
		found=
		for one in $any; do
			if command -v "$one" >/dev/null || [ -e "$one" ]; then found=yes; fi
		done
		[ -n "$found" ] || missing+=($packages)
	done
	[ "${#missing[@]}" -gt 0 ] || exit 0

	as_root=
	[ "$(id -u)" = 0 ] || as_root=sudo
	echo "installing ${missing[*]}" >&2
	if ! command -v apt-get >/dev/null || ! command -v "${as_root:-apt-get}" >/dev/null; then
		echo "this machine lacks ${missing[*]} (Debian's names), and apt-get as root or sudo to install them" >&2
		exit 1
	fi
	policy=/usr/sbin/policy-rc.d
	if ! [ -e $policy ]; then
		trap '$as_root rm -f $policy' EXIT
		printf '#!/bin/sh\nexit 101\n' | $as_root tee $policy >/dev/null
		$as_root chmod 755 $policy
	fi
	$as_root apt-get -qq -o DPkg::Lock::Timeout=300 update >&2
	$as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 -y --no-install-recommends install "${missing[@]}" >&2
)
