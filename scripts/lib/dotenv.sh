# Sourced by scripts/up: reads .env as Compose does.
#
# It reads lines NAME=value, with "export" before the name, blanks, quotes, comments and $NAME as Compose understands them.
# It refuses a line that Compose would read in a way of its own, such as an escape or a value over several lines: the
# scripts and the containers must never have different settings. Source: "Set, use, and manage variables in a Compose file
# with interpolation" in Docker's manual.

declare -A dotenv=() # the settings of the file, by name

# read_dotenv FILE reads the file into dotenv. It ends the script at the first line that it refuses.
read_dotenv() {
	local file=$1 line number=0 name
	dotenv=()
	while IFS= read -r line || [ -n "$line" ]; do
		number=$((number + 1))
		[ $number -gt 1 ] || line=${line#$'\xef\xbb\xbf'} # a byte order mark
		line=${line%$'\r'}
		[[ ! $line =~ ^[[:blank:]]*(#|$) ]] || continue
		[[ $line =~ ^[[:blank:]]*(export[[:blank:]]+)?([A-Za-z_][A-Za-z0-9_]*)[[:blank:]]*=[[:blank:]]*(.*)$ ]] ||
			refuse_line "write NAME=value, where the name has letters, digits and _"
		name=${BASH_REMATCH[2]}
		dotenv[$name]=$(dotenv_value "${BASH_REMATCH[3]}") || exit
	done <"$file"
}

# dotenv_value TEXT prints the value that the text behind = stands for.
dotenv_value() {
	local text=$1 quoted="^([\"'])(.*)\$"
	if [[ $text =~ $quoted ]]; then
		local quote=${BASH_REMATCH[1]} rest=${BASH_REMATCH[2]}
		[[ $rest == *"$quote"* ]] || refuse_line "end the value with $quote on this line"
		text=${rest%%"$quote"*}
		rest=${rest#*"$quote"}
		[[ $text != *\\* ]] || refuse_line "write the value without quotes: a backslash within quotes is an escape"
		[[ $rest =~ ^[[:blank:]]*(#|$) ]] || refuse_line "write nothing but a comment behind the closing $quote"
		[ "$quote" = '"' ] || { printf %s "$text" && return; }
	else
		[[ $text != '#'* ]] || refuse_line "write the comment on a line of its own, or the value in single quotes"
		[[ $text != *$'\t#'* ]] || refuse_line "write a blank, not a tab, before the comment"
		text=${text%%" #"*}
		[[ $text =~ ^(.*[^[:blank:]])?[[:blank:]]*$ ]] && text=${BASH_REMATCH[1]}
	fi
	dotenv_expand "$text"
}

# dotenv_expand TEXT prints the text with the values of the settings that it names as $NAME or ${NAME}.
dotenv_expand() {
	local rest=$1 out= named='^(([A-Za-z_][A-Za-z0-9_]*)|\{([A-Za-z_][A-Za-z0-9_]*)\})(.*)$'
	while [[ $rest == *'$'* ]]; do
		out+=${rest%%'$'*}
		rest=${rest#*'$'}
		if [[ $rest == '$'* ]]; then
			out+='$'
			rest=${rest#'$'}
		elif [[ $rest =~ $named ]]; then
			rest=${BASH_REMATCH[4]}
			out+=$(setting "${BASH_REMATCH[2]}${BASH_REMATCH[3]}")
		else
			refuse_line 'write $NAME or ${NAME} for the value of another setting, or the whole value in single quotes'
		fi
	done
	printf %s "$out$rest"
}

# refuse_line WHAT: ends the script because of the line that read_dotenv is at.
refuse_line() {
	echo "${0##*/}: $file, line $number cannot be read as Compose reads it: $1" >&2
	exit 1
}

# setting NAME prints the value that Compose uses: that of the environment, else that of the file, else nothing.
setting() { printenv "$1" || printf '%s\n' "${dotenv[$1]-}"; }

# set_dotenv FILE NAME VALUE writes a line of the file, in place of the earlier ones. The value has no blanks and no quotes.
set_dotenv() {
	cp -p "$1" "$1.new"
	NAME=$2 VALUE=$3 awk '
		BEGIN { name = "^[ \t]*(export[ \t]+)?" ENVIRON["NAME"] "[ \t]*=" }
		$0 !~ name { print; next }
		!done { print ENVIRON["NAME"] "=" ENVIRON["VALUE"]; done = 1 }
		END { if (!done) print ENVIRON["NAME"] "=" ENVIRON["VALUE"] }' "$1" >"$1.new"
	mv "$1.new" "$1"
	dotenv[$2]=$3
}
