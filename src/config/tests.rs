use super::*;

fn resolve(settings: Settings) -> Result<Config, String> {
    Config::resolve(settings, None)
}

#[test]
fn nothing_given_is_embedded_mode_on_loopback() {
    let config = resolve(Settings::default()).unwrap();
    assert_eq!(config.listen.to_string(), "127.0.0.1:8080");
    assert!(matches!(config.store, StoreOptions::Sqlite { .. }));
    assert!(config.limits.rate_limits);
}

#[test]
fn an_error_names_the_key() {
    let wrong = |settings, word: &str| {
        let error = resolve(settings).unwrap_err();
        assert!(error.contains(word), "{error}");
    };
    wrong(
        Settings { database_url: Some("mysql://x".into()), ..Settings::default() },
        "DATABASE_URL",
    );
    wrong(Settings { redis_url: Some("redis://x".into()), ..Settings::default() }, "REDIS_URL");
    wrong(
        Settings { public_url: Some("chat.example.org".into()), ..Settings::default() },
        "STARLING_PUBLIC_URL",
    );
    let too_many =
        Settings { chats_per_user_max: Some(CHATS_PER_USER_MAX + 1), ..Settings::default() };
    wrong(too_many, "chats_per_user_max must be at most 1016");
    wrong(Settings { page_max: Some(0), ..Settings::default() }, "page_max");
    wrong(Settings { token_life_s: Some(u64::MAX), ..Settings::default() }, "token_life_s");
    wrong(
        Settings { trusted_proxies: Some("nonsense".into()), ..Settings::default() },
        "trusted_proxies",
    );
}

#[test]
fn a_remote_database_or_redis_without_verified_tls_gives_a_warning() {
    let warnings = |database: &str, redis: Option<&str>| {
        let settings = Settings {
            database_url: Some(database.to_owned()),
            redis_url: redis.map(str::to_owned),
            ..Settings::default()
        };
        let warnings = resolve(settings).unwrap().warnings();
        ["Postgres", "Redis"].map(|name| warnings.iter().any(|warning| warning.starts_with(name)))
    };

    for (url, warned) in [
        ("postgres://a@localhost/b", false),
        ("postgres://a@127.0.0.1/b", false),
        ("postgres://a@%2Frun%2Fpostgresql/b", false),
        ("postgres://a@db.example.org/b", true),
        ("postgres://a@db.example.org/b?sslmode=require", true),
        ("postgres://a@db.example.org/b?sslmode=verify-ca", false),
        ("postgres://a@db.example.org/b?sslmode=verify-full", false),
    ] {
        assert_eq!(warnings(url, None), [warned, false], "{url}");
    }
    for (url, warned) in [
        ("redis://localhost", false),
        ("redis://10.0.0.1", true),
        ("rediss://10.0.0.1", false),
        ("rediss://10.0.0.1/#insecure", true),
        ("redis+sentinel://localhost,s2.example.org/main", true),
        ("rediss+sentinel://s1.example.org/main", false),
        ("redis+cluster://n1.example.org", true),
        ("rediss+cluster://n1.example.org", false),
    ] {
        assert_eq!(warnings("postgres://a@localhost/b", Some(url)), [false, warned], "{url}");
    }
}

#[test]
fn flags_win_over_the_file() {
    let flags = Settings { page_max: Some(7), ..Settings::default() };
    let file: Settings = toml::from_str("page_max = 9\ngroup_members_max = 30").unwrap();
    let config = resolve(flags.or(file)).unwrap();
    assert_eq!((config.limits.page_max, config.limits.group_members_max), (7, 30));
}

#[test]
fn every_key_of_the_documented_file_is_read_with_its_type() {
    let documented = Config::documented_file();
    let keys = documented.lines().filter_map(|line| {
        line.strip_prefix('#').filter(|line| !line.starts_with(' ') && line.contains(" = "))
    });
    let file = keys.collect::<Vec<_>>().join("\n");
    let settings: Settings = toml::from_str(&file).unwrap();
    assert_eq!(file.lines().count(), KEYS.len());

    // The examples of the optional keys are read as well, but they are no defaults.
    let defaults = resolve(Settings::default()).unwrap();
    assert_eq!(settings.page_max, Some(defaults.limits.page_max));
    assert_eq!(settings.chats_per_user_max, Some(defaults.limits.chats_per_user_max));
    assert!(defaults.redis.is_none() && defaults.public_url.is_none());
}

#[test]
fn an_unknown_key_in_the_file_is_refused() {
    assert!(toml::from_str::<Settings>("colour = 1").unwrap_err().to_string().contains("colour"));
}
