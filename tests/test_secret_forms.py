# SPDX-License-Identifier: Apache-2.0
"""Secrets: in the listed forms and named fields they never survive, and what is no secret stays as it is."""

from __future__ import annotations

import json
import string
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from otel_crdb import card_numbers, secret_forms
from otel_crdb.secret_values import (
    MASK,
    mask_secrets,
    masked_text,
    masked_value,
    may_hold_secret,
)

SECRET = "s3cr3tAlice"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
SESSION_KEY = "k3v0q2m1x9z8w7y6u5t4s3r2p1o0n9ml"


# One form a line, `@@` is the secret. What stands around it is given back as it is, `…` for the secret.
FORMS = r"""
password=@@
password: @@
Password : "@@"
password='@@ and more'
{"password": "@@", "a": 1}
{'password': '@@', 'a': 1}
{"password":"@@"}
{\"password\": \"@@\"}
{"user":{"api_key":"a\"@@"}}
{'new_password1': '@@', 'new_password2': '@@'}
User(name='x', password='@@')
User(password=@@)
password=@@, user=x
a=1&token=@@&b=2
GET /cb?code=@@&state=1
GET /cb?sig=@@
?user[password]=@@&x
?user%5Bpassword%5D=@@&x
?next=%2Fcb%3Ftoken%3D@@
csrfmiddlewaretoken=@@&next=/
Authorization: Bearer @@
Authorization: Basic @@
Authorization: Token @@
Authorization: @@
{'Authorization': 'Bearer @@'}
Authorization: Digest username="x", response="@@"
curl -H "Authorization: Bearer @@" https://db.example/x
Cookie: sessionid=@@; csrftoken=@@
Set-Cookie: sessionid=@@; Path=/; HttpOnly
{"cookie": "sessionid=@@; a=b"}
request.META['HTTP_COOKIE']='a=@@'
[(b'authorization', b'Bearer @@'), (b'cookie', b'a=@@')]
('X-Api-Key', '@@')
X-CSRFToken: @@
postgresql://u:@@@h:26257/db?sslmode=require
postgres://u:@@/x@h/db
postgres://u:a@@@@@h/db
redis://:@@@cache:6379/0
https://@@@sentry.example/1
host=h password=@@ dbname=x
host=h password='@@ \' b' dbname=x
PGPASSWORD=@@ psql
SECRET_KEY = '@@'
AWS_SECRET_ACCESS_KEY=@@
DefaultEndpoints=https;AccountKey=@@;EndpointSuffix=x
psql --password @@ -h x
otel --api-key=@@ -v
CREATE USER x WITH PASSWORD '@@'
<password>@@</password>
session_key=@@
session=@@
Session('@@')
<Session: @@>
'sessionid': '@@'
passwords=['@@', '@@']
credentials={'user': 'x', 'hint': '@@'}
db_pass=@@
dbPwd: @@
otp=@@
Bearer @@
Key (email)=(@@) already exists.
Key (lower(email::text), n)=(@@, (1)) already exists.
Key (password)=(@@) is not present
could not lock row (id, name)=(1, @@)
login of @@@example.com failed
mail to <@@.b+c@mail.example.co.uk>, sent
Key=O'@@@example.com
email=@@%40example.com&x=1
UPDATE u SET password='it''s @@' WHERE id=1
ALTER USER b PASSWORD $$it @@$$
ALTER USER b WITH PASSWORD $a$@@$$$a$
password='it''s @@
password＝@@
パスワードpassword：@@
pw=@@
verification_code=@@
"recovery_code": "@@"
{'otp_code': '@@'}
security_answer=@@
pbkdf2_sha256$870000$salt$@@0123456789abcdef=
argon2$argon2id$v=19$m=102400,t=2,p=8$c2FsdA$@@
bcrypt_sha256$$2b$12$@@0123456789abcdef
hash $2b$12$KIXQ1@@0123456789abcdef, 5
scrypt$salt$16384$8$5$@@0123456789==
""".strip().splitlines()


@pytest.mark.parametrize("form", FORMS)
def test_no_secret_of_a_listed_form_survives(form: str) -> None:
    """In each form the secret is gone, something stands for it, and masking once more changes nothing."""
    masked = mask_secrets(form.replace("@@", SECRET))
    assert SECRET not in masked
    assert MASK in masked
    assert mask_secrets(masked) == masked
    assert SECRET not in masked_text(form.replace("@@", SECRET))


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("password=a, user=x", "password=…, user=x"),
        ('{"password": "a", "a": 1}', '{"password": "…", "a": 1}'),
        ("User(name='x', password='a')", "User(name='x', password='…')"),
        ("a=1&token=x&b=2", "a=1&token=…&b=2"),
        ("Authorization: Bearer abc", "Authorization: Bearer …"),
        ("postgresql://u:p@h:26257/db", "postgresql://…@h:26257/db"),
        ("host=h password=a dbname=x", "host=h password=… dbname=x"),
        ("Key (email)=(a@b.co) already exists.", "Key (email)=(…) already exists."),
        ("login of a@b.co failed", "login of … failed"),
        ("paid with 4111 1111 1111 1111 today", "paid with … today"),
        (f"jwt {JWT}.", "jwt …."),
        ("<password>a</password>", "<password>…</password>"),
        ("SET password='it''s a', b='c'", "SET password='…', b='c'"),
        ("SET password='', b='c''d'", "SET password='', b='c''d'"),
        ("PASSWORD $$it a$$ VALID", "PASSWORD $$…$$ VALID"),
        (
            "Not Found: /accounts/reset/MQ/c1a2b3-0123456789abcdef0123456789abcdef/",
            "Not Found: /accounts/reset/MQ/…/",
        ),
        ("password:\r\nhunter\r\nnext line", "password:\r\n…\r\nnext line"),
        ("user: bob\n  password:\n    hunter", "user: bob\n  password:\n    …"),
        ("password: |\n  hunter\nuser: bob", "password: |\n  …\nuser: bob"),
    ],
)
def test_what_stands_around_a_secret_stays(text: str, masked: str) -> None:
    """Only the secret is replaced: names, quotes and what follows stay."""
    assert mask_secrets(text) == masked


TOKENS = [
    JWT,
    JWT[:40],
    "ghp_" + "a1B2" * 9,
    "github_pat_" + "a1B2_" * 6,
    "glpat-" + "a1B2c" * 4,
    "xoxb-123456789012-abcdefABCDEF",
    "AKIA" + "IOSFODNN7EXAMPLE",
    "AIza" + "Sy0-_" * 7,
    "ya29." + "a0Af_-" * 5,
    "sk_live_" + "4eC39HqLyjWD",
    "rk_test_" + "4eC39HqLyjWD",
    "whsec_" + "a1B2" * 6,
    "sk-proj-" + "a1B2" * 6,
    "SG." + "a1B2c3D4e5F6g7H8." + "a1B2" * 8,
    "npm_" + "a1B2" * 9,
    "pypi-" + "AgEIcHlwaS5vcmcCJD",
    "hf_" + "aBcD" * 9,
    "shpat_" + "0aF1" * 8,
    "hvs." + "CAESI" * 5,
    "CCDB1_" + "D4zlI3pmTmk5rGrzYqMhbc_" + "NkcX" * 10,
    "dop_v1_" + "0af1" * 16,
]


@pytest.mark.parametrize("token", TOKENS)
@pytest.mark.parametrize(
    "around", ["{}", "with {} set", "'{}'", "key:{},", "/hook/{}/x", "é{}\n", "x_{}"[2:]]
)
def test_a_token_is_known_by_its_own_form(token: str, around: str) -> None:
    """A token of a common issuer is masked without a name before it."""
    assert token not in mask_secrets(around.format(token))


def test_a_private_key_is_masked_whole() -> None:
    """A private key in PEM's form is masked from its first line to its last, also where the end is cut off."""
    key = "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\nAAAA\n-----END RSA PRIVATE KEY-----"
    assert mask_secrets(f"loaded {key} from disk") == "loaded … from disk"
    assert mask_secrets(key[:50]) == MASK


def test_a_session_key_beside_its_word() -> None:
    """Django's session keys are known by their letters near the word, a hexadecimal id is none."""
    assert SESSION_KEY not in mask_secrets(f"Session {SESSION_KEY} expired")
    assert SESSION_KEY not in mask_secrets(f"no session with key '{SESSION_KEY}'")
    hexadecimal = "session 4bf92f3577b34da6a3ce929d0e0e4736 on node 1"
    assert mask_secrets(hexadecimal) is hexadecimal


# --- cards ----------------------------------------------------------------------------------------

CARDS = [
    "4111111111111111",
    "5555555555554444",
    "5105105105105100",
    "2223003122003222",
    "378282246310005",
    "371449635398431",
    "30569309025904",
    "38520000023237",
    "6011111111111117",
    "3530111333300000",
    "6200000000000005",
    "6304000000000000",
    "5018000000000009",
    "2200000000000004",
    "6528000000000007",
]


@pytest.mark.parametrize("card", CARDS)
def test_cards_are_masked(card: str) -> None:
    """An issuer's prefix at that length and Luhn's digit make a card, as text, in groups, and as a number."""
    if not card_numbers._has_luhn_digit(
        card
    ):  # the check digit is worked out for ranges without a test number
        card = next(
            card[:-1] + digit for digit in string.digits if card_numbers._has_luhn_digit(card[:-1] + digit)
        )
    groups = (
        [card[:4], card[4:10], card[10:]]
        if len(card) in (14, 15)
        else [card[i : i + 4] for i in range(0, len(card), 4)]
    )
    for shown in (card, " ".join(groups), "-".join(groups)):
        for text in (
            shown,
            f"card {shown}, 12/27",
            f'{{"number":"{shown}"}}',
            f"n={shown}&x",
            f"1234 {shown}",
        ):
            assert shown not in mask_secrets(text), text
    assert masked_value("n", int(card)) == MASK
    assert masked_value("n", card) == MASK


def luhn(digits: str) -> str:
    """Complete digits by the one that Luhn asks for."""
    return next(digits + last for last in string.digits if card_numbers._has_luhn_digit(digits + last))


@given(st.integers(min_value=0, max_value=(1 << 48) - 1), st.integers(min_value=0, max_value=(1 << 15) - 1))
def test_row_ids_survive(ten_microseconds: int, node: int) -> None:
    """No id of CockroachDB's `unique_rowid()`, from its first year until 2034, is taken for a card."""
    last = (2034 - 2015) * 366 * 86_400 * 100_000
    first = last // 40
    row_id = (first + ten_microseconds % (last - first)) << 15 | node
    assert masked_value("id", row_id) == row_id
    text = f"row {row_id} of {row_id}"
    assert mask_secrets(text) is text


@pytest.mark.parametrize(
    "prefix", ["1", "7", "8", "9", "0", "2026", "20261123", "1763918872", "2199", "2721"]
)
@pytest.mark.parametrize("length", [13, 14, 15, 16, 17, 18, 19])
def test_numbers_without_an_issuers_prefix_survive(prefix: str, length: int) -> None:
    """A number that passes Luhn and has no issuer's prefix at its length stays."""
    number = luhn(prefix.ljust(length - 1, "3"))
    text = f"id {number}."
    assert mask_secrets(text) is text


@pytest.mark.parametrize("prefix", ["4", "62", "5018", "6011", "35", "36", "2200"])
def test_row_ids_of_18_digits_survive(prefix: str) -> None:
    """An id of 18 digits stays with any prefix and Luhn's digit: rows of 2016 to 2024 have such ids."""
    row_id = int(luhn(prefix.ljust(17, "3")))
    text = f"id={row_id}"
    assert mask_secrets(text) is text
    assert masked_value("id", row_id) == row_id


# --- what is no secret ----------------------------------------------------------------------------

CLEAN = r"""
duplicate key value violates unique constraint "account_email_key"
insert on table "a" violates foreign key constraint "fk"
foreign key violation on table "auth_user"
unexpected token ')' at line 3
Unexpected token < in JSON at position 0
author: Ann
author=Ann
password too short
The password is too similar to the username.
password: This field is required.
Invalid token: expired
Invalid password
password authentication failed for user "app"
column "password" does not exist
at or near "password": syntax error
null value in column "token" of relation "t" violates not-null constraint
KeyError: 'token'
AttributeError: 'NoneType' object has no attribute 'password'
Cannot resolve keyword 'x' into field. Choices are: email, id, password, sessions
Basic authentication failed; bearer token missing
WWW-Authenticate: Bearer realm="x"
key: value, key=5, primary_key=7, cache_key=abc, monkey=1
code: 40001 code=40001 sqlstate=40001
session closed: session expired, session: 12
txn_id=550e8400-e29b-41d4-a716-446655440000
550e8400-1234-4234-8234-446655440000
trace_id=4bf92f3577b34da6a3ce929d0e0e4736 span_id=00f067aa0ba902b7
traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01
id=1099511627776123456 rowid 912345678901234567
10.0.0.1:26257 [::1]:8000 fe80::1
2026-11-23T17:27:52.123456Z 2026-11-23 17:27:52,123 20261123172752123
1763918872000000000.0000000001 0.4111111111111111
call +4915112345678 or 0151 1234567
v1.2.3-beta.4 lodash@4.17.21 logo@2x.png @decorator user@localhost
account@account_email_key public.account@primary
http://localhost:8000/a?b=c&page=2
http://db.example:8080/x?at=10:30
max_tokens=5 token_type=x password_changed_at=2026 has_password
UPDATE "auth_user" SET "password" = %s WHERE "token" = "b"."token"
UPDATE "auth_user" SET "password" = ?, "token" = $1
INSERT INTO t (token) VALUES (1) ON CONFLICT (id) DO UPDATE SET token = excluded.token
SELECT "django_session"."session_key" FROM "django_session" WHERE "django_session"."session_key" = ?
create_user(password=password, token=self.token)
password=None token='' secret=null
password=******** token=[Filtered] key=REDACTED
Session.objects.get(pk=5)
task-force-of-the-department-of-things
a -- b, c - d, x -> y, 5 < 6 > 4
EAN 4222222222222, 4006381333931
x.py:5: in test_token: assert 5
sk-learn-model-version-number-five
git@github.com:org/repo.git git@gitlab.example.com/x
cookies: enabled, secrets: 3 found, api_keys: 3, sid=5 sig=11
GET /static/app-0123456789abcdef0123456789abcdef.js and /x/00-0123456789abcdef0123456789abcdef-00f067aa0ba902b7
SELECT $1, $2 FROM t WHERE a = $3 -- pbkdf2_sha256, scrypt$
""".strip("\n").splitlines()


#: A name at a line's end, and the next line is no value of it.
CLEAN_LINES = [
    'File "x.py", line 5, in f\n    if not token:\n        raise ValueError',
    "  elif password:\n    break\n",
    "token:\n  type: bearer\n",
    "secrets:\n  - name\n  - other\n",
    "token:\n  name:\n    x",
    "password:\nuser=x\n",
    'token:\n  File "x.py", line 5',
    "token:\n    ^^^^^\n",
    "password:\nThis field is required.",
    "password:\nrequired",
    "password:\n\nx",
]


@pytest.mark.parametrize("text", ["", " ", "\n", "…", "é", "日本語", "\x00", *CLEAN, *CLEAN_LINES])
def test_clean_texts_are_the_very_same(text: str) -> None:
    """Ids, numbers, times, addresses and sentences about secrets come back as the very object."""
    assert mask_secrets(text) is text
    assert mask_secrets(f"  {text}\n") == f"  {text}\n"
    assert masked_value("note", text) == text


WORDS = st.sampled_from(
    [
        "order",
        "42",
        "12.5",
        "saved",
        "in",
        "the",
        "table",
        '"a"',
        "(b)",
        "x:",
        "y=",
        "-",
        "key",
        "code",
        "row",
        "é",
        "user",
        "\n",
        "'s",
        "n=7",
        "200",
    ]
)


@given(st.lists(WORDS, max_size=30), st.sampled_from([" ", ""]))
def test_arbitrary_clean_texts_are_the_very_same(words: list[str], joint: str) -> None:
    """Words of which none is a secret's stay, however they are put together."""
    text = joint.join(words)
    assert mask_secrets(text) is text


# --- planted --------------------------------------------------------------------------------------

NAMES = [
    "password",
    "PASSWORD",
    "new_password1",
    "passwd",
    "passphrase",
    "db_pass",
    "userPwd",
    "token",
    "access_token",
    "refreshToken",
    "csrfmiddlewaretoken",
    "X-Auth-Token",
    "secret",
    "client_secret",
    "api_key",
    "X-Api-Key",
    "apikey",
    "private_key",
    "secret_key",
    "aws_secret_access_key",
    "session_key",
    "sessionid",
    "sessid",
    "authorization",
    "Proxy-Authorization",
    "credential",
    "credentials",
    "jwt",
    "otp",
    "cvv",
    "ssn",
    "card_number",
]
# With marks at both ends: no text has them by chance.
SECRETS = st.text(string.ascii_letters + string.digits + "+/_-", min_size=8, max_size=40).map(
    lambda text: f"Q7{text}z9"
)
#: How a field is written down: with its name, and with the secret's own end in sight.
FIELDS = st.sampled_from(
    ["{n}={s}", "{n}: {s}", "{n} = {s}", '"{n}": "{s}"', '"{n}":"{s}"', "'{n}': '{s}'", "{n}='{s}'", '{n}="{s}"', "?{n}={s}", "&{n}={s}&",
     "({n}={s})", "{{'{n}': '{s}'}}", "[{n}={s}]", '\\"{n}\\": \\"{s}\\"', "('{n}', '{s}')", "--{n} {s}", "{n}=>{s}", "{n}:={s}",
     "{n}=['{s}']", "{n}=(1, '{s}')", "<{n}>{s}</{n}>"]
)  # fmt: skip
AROUND = st.text(max_size=60) | st.lists(WORDS, max_size=8).map(" ".join)


@given(st.sampled_from(NAMES), SECRETS, FIELDS, AROUND, AROUND)
@example("password", "Q7aaaaaaaaz9", "{n}={s}", "'", "'")
@example("token", "Q7aaaaaaaaz9", "{n}: {s}", '"', "x")
def test_no_secret_of_a_named_field_survives(
    name: str, secret: str, field: str, before: str, after: str
) -> None:
    """A field of a secret's name is masked in any notation, whatever stands around it."""
    text = f"{before} {field.format(n=name, s=secret)} {after}"
    for mask in (mask_secrets, masked_text):
        masked = mask(text)
        assert secret not in masked
        assert mask(masked) == masked


ADDRESSES = st.from_regex(
    r"[a-z]{6,12}(?:[.+_-][a-z0-9]{1,9})?@[a-z0-9]{1,9}(?:-[a-z]{1,5})?\.(?:com|example|co\.uk)",
    fullmatch=True,
)


@given(
    ADDRESSES | st.sampled_from([*TOKENS, *CARDS[:8]]),
    AROUND,
    AROUND,
    st.sampled_from([" ", "\n", "'", '"', "(", "<", ",", "="]),
)
def test_no_secret_of_a_form_survives(secret: str, before: str, after: str, joint: str) -> None:
    """An address, a token and a card are masked in any text, set apart by a sign of any kind."""
    masked = mask_secrets(f"{before}{joint}{secret}{joint}{after}")
    assert secret not in masked
    assert mask_secrets(masked) == masked


@given(SECRETS, AROUND, st.sampled_from(["postgresql", "redis", "https", "amqp"]), st.sampled_from(["", "u"]))
def test_no_password_of_a_url_survives(secret: str, around: str, scheme: str, user: str) -> None:
    """User and password before a URL's host are masked."""
    assert secret not in mask_secrets(
        f"{around} {scheme}://{user}:{secret}@db.example:26257/shop?a=b {around}"
    )


@given(
    st.recursive(
        SECRETS,
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b"]), inner, max_size=3)
        ),
    ),
    st.sampled_from(NAMES),
)
def test_no_secret_in_json_survives(value: object, name: str) -> None:
    """Whatever JSON stands behind a secret's name, nothing of it is left, and the rest can still be read."""
    masked = mask_secrets(json.dumps({"id": 7, name: value, "state": "new"}))
    assert "Q7" not in masked
    assert masked.startswith('{"id": 7, ')
    assert masked.endswith('"state": "new"}')


@given(st.text(alphabet=st.characters(codec=None), max_size=300))
@example("\ud800")
@example("password=\ud800")
@example("%40a.co@%40b.co")
def test_any_text_gives_valid_unicode(text: str) -> None:
    """Any text comes back as one that can be encoded, never longer, and is masked for good."""
    for mask in (mask_secrets, masked_text):
        masked = mask(text)
        masked.encode()
        assert len(masked) <= len(text)
        assert mask(masked) == masked


PIECES = st.sampled_from(
    ["password", "token", "cookie", "session", "Session(", "Key (", ")=(", "=", ":", " ", '"', "'", "\\", "(", ")", "[", "{", "}", ";", "&", "?", ",",
     "a@b.co", "://", "@", "4111 1111 1111 1111", "-", "--", "<", ">", "\n", "Bearer", "digest", "…", "REDACTED", "x", "%40", "eyJhbGciOiJIUzI1", "%3D"]
)  # fmt: skip


@given(st.lists(PIECES, max_size=24).map("".join))
@example("Session(Session(a@b.co")
def test_masking_is_stable(text: str) -> None:
    """What has been masked is masked: once more changes nothing, however its signs fall together."""
    masked = mask_secrets(text)
    assert mask_secrets(masked) == masked
    if not may_hold_secret(text):
        assert masked is text


# --- bounds ---------------------------------------------------------------------------------------

HOSTILE = """
password=
password:"
password='x
token=(
cookie:
cookie:a=b;
token=digest
a.
a@
a@b.
%40
-a
--password
<a
://a:
://
eyJ
-eyJ
eyJa-
xoxb-
SG.
sk-
-----BEGIN PRIVATE KEY-----
Key (
Key (a)=(
session
session k3v0
password=''
-0123456789abcdef0123456789abcdef
password=$a$
pbkdf2_sha256$
$2b$12$
1234-
4111 1111 1111 1112_
bearer
'password', '
password=password=
\\"password\\":\\"
password=\\
&a=
=
:
""".strip("\n").splitlines()


def seconds(text: str) -> float:
    """Return how long the fastest of three rounds took."""
    taken = []
    for _ in range(3):
        started = time.process_time()
        mask_secrets(text)
        taken.append(time.process_time() - started)
    return min(taken)


@pytest.mark.parametrize("piece", [*HOSTILE, " ", "a", "1", "\\", "é"])
def test_time_is_linear(piece: str) -> None:
    """Eight times the hostile text takes no more than some thirty times as long, where squares would take 64."""
    short = piece * (secret_forms.LIMIT // 8 // len(piece))
    assert seconds(short * 8) <= 30 * seconds(short) + 0.01


@pytest.mark.parametrize("piece", [*HOSTILE, "a", "é"])
def test_huge_texts_are_cut(piece: str) -> None:
    """Two megabytes take little longer than one, and come back bounded, masked for good."""
    text = piece * (1_000_000 // len(piece))
    masked = mask_secrets(text)
    assert len(masked) <= secret_forms.LIMIT
    assert mask_secrets(masked) == masked
    assert seconds(text * 2) <= 10 * seconds(text) + 0.1


@pytest.mark.parametrize(
    "secret",
    [f"password={SECRET}", f"{SECRET}@example.com", f"Cookie: a=b; c={SECRET}", f"'token': '{SECRET}'"],
)
@pytest.mark.parametrize("shift", range(0, 40, 3))
def test_no_secret_survives_where_a_text_is_cut(secret: str, shift: int) -> None:
    """A secret that the cut of a long text goes through leaves no part behind."""
    half = secret_forms.LIMIT // 2
    filler = "filler " * (half // 7)
    text = f"{filler[shift:]} {secret} {filler * 2} {secret} {filler[: -shift or None]}"
    masked = mask_secrets(text)
    assert len(masked) <= secret_forms.LIMIT
    for part in (SECRET, SECRET[:6], SECRET[-6:]):
        assert part not in masked
