from __future__ import annotations

import pytest

from nbdist.hiding import hide_assigned, hide_passwords, is_secret_name

SECRETS = """
    password db_password dbPassword PASSWD passphrase secret client-secret secrets.a token hf_token
    accessToken HF_TOKEN api_key apiKey APIKey apikey private_key aws.secret_access_key auth
    basic_auth credential credentials bearer
"""
OTHERS = """
    tokenizer max_tokens num_tokens numTokens tokens token_ids eos_token pad_token mask_token
    tokens_per_batch monkey keyboard key keys sort_key key_dim author authors authority secretary lr
    passes forward_pass compass hidden_size api_key_id access auth_method
"""


@pytest.mark.parametrize("name", SECRETS.split())
def test_names_of_secrets_are_known_word_by_word(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize("name", OTHERS.split())
def test_names_that_only_look_like_it_are_not(name: str) -> None:
    assert not is_secret_name(name)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgres://user:hunter2@host/db", "postgres://user:***@host/db"),
        ("redis://:hunter2@host:6379/0", "redis://:***@host:6379/0"),
        (
            "a mysql+pymysql://u:p@ss@h and https://u:q@h",
            "a mysql+pymysql://u:***@h and https://u:***@h",
        ),
        ("https://host/x?token=abc&page=2", "https://host/x?token=***&page=2"),
        ("host=h password=hunter2 dbname=d", "host=h password=*** dbname=d"),
        ("Server=h;Password=hunter2;Port=1", "Server=h;Password=***;Port=1"),
    ],
)
def test_passwords_in_urls_and_connection_strings_are_hidden(text: str, shown: str) -> None:
    assert hide_passwords(text) == shown


@pytest.mark.parametrize(
    "text",
    ["", "http://host:8080/users/@me", "me@host.org", "12:30", "max_tokens=5", "C:/a@b", "a: b@c"],
)
def test_other_texts_stay_as_they_are(text: str) -> None:
    assert hide_passwords(text) == text
    assert hide_assigned(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("params.password=a,b: c", "params.password=***"),
        ("params={lr: 1, password: a, b: c}", "params={lr: 1, password: ***"),
        ("params.a={'api_key': x}", "params.a={'api_key': ***"),
        ("params.db=https://u:p@h", "params.db=https://u:***@h"),
        ("seed=7", "seed=7"),
    ],
)
def test_a_setting_is_shown_without_its_secret(text: str, shown: str) -> None:
    assert hide_assigned(text) == shown
