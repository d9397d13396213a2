#!/usr/bin/env python3
"""Makes dumps.txt: pairs of lines, a text as the hex of its UTF-8 bytes, and what json.dumps writes for it;
after an empty line, pairs of the values of a whole answer, and that answer."""
import json

texts = [
    "", "g.mp4", "Ünïcödé/ñ.mp4", "e\u0301 and \u00e9", "日本語/動画.mp4", "😀.mp4", "𝒳\U0010ffff\U00010000",
    "\ud7ff\ue000\ufffd\ufffe\uffff", "\u2028\u2029\u0085\u00a0\u00ad\ufeff", "</script><b>&amp;'", "a\"b", "a\\", "\\\"", "\\\\",
    "\\u0041", "\\n", 'x", "worker_id": "y", "status": "done', 'x", "event_id": "", "entry_id": "99-99", "updated_at": "now"}',
    '"}', "{}", "[1, 2]", "a/b/c", "%41 %s %%", "$1 ^(.*)$ [a-z]+", "tab\tnew\nline\rreturn\bback\ffeed\vvertical\0null\x1bescape\x7fdelete",
    "".join(map(chr, range(0x20))), "".join(map(chr, range(0x20, 0x100))), "\u0100\u07ff\u0800\u1fff",
]
rows = [
    ("7", "1964", "silver", "bronze", "g.mp4", None, "update"),
    ("9223372036854775807", "0", "bronze", "bronze", 'x", "worker_id": "y", "status": "done', "w-1", "done"),
    ("1", "9223372036854775807", "gold", "silver", "😀\x7f\\\"</script>", "host\"\\1", "update"),
]
with open(__file__.removesuffix(".py") + ".txt", "w", encoding="ascii") as f:
    for t in texts:
        print(t.encode().hex(), json.dumps(t), sep="\n", file=f)
    print(file=f)
    keys = ["cid", "count", "target", "db_level", "filename", "worker_id", "status"]
    for r in rows:
        print("|".join("-" if v is None else v.encode().hex() for v in r), json.dumps(dict(zip(keys, r))), sep="\n", file=f)
