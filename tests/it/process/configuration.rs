//! Flags, environment and file: which one wins, and how errors are reported.

use super::harness::Home;

/// Writes a configuration file. Returns its path.
fn file(home: &Home, text: &str) -> String {
    let path = home.path().join("starling.toml");
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

#[tokio::test]
async fn bad_flags_end_with_2_and_name_the_flag() {
    let home = Home::new();
    for (arguments, word) in [
        (&["--nonsense"][..], "--nonsense"),
        (&["dance"], "dance"),
        (&["--listen", "nonsense"], "--listen"),
        (&["--page-max", "many"], "--page-max"),
        (&["--page-max", "0"], "page_max"),
        (&["--rate-limits", "maybe"], "--rate-limits"),
        (&["--log", "=,="], "STARLING_LOG"),
        (&["user", "create"], "--login"),
        (&["user", "create", "--login", "a", "--count", "0"], "--count"),
        (&["user", "create", "--login", "no spaces"], "login"),
        (&["invite", "--uses", "0"], "uses"),
        (&["invite", "--uses", "1001"], "uses"),
        (&["invite", "--expires-in-s", "0"], "expires_in_s"),
    ] {
        home.run(arguments).await.failed(2, &[word]);
    }
}

#[tokio::test]
async fn a_bad_environment_ends_with_2_and_names_the_key() {
    for (key, value, word) in [
        ("STARLING_LISTEN", "nonsense", "--listen"),
        ("STARLING_PAGE_MAX", "0", "page_max"),
        ("STARLING_PAGE_MAX", "many", "--page-max"),
        ("STARLING_LOG", "=,=", "STARLING_LOG"),
        ("STARLING_LOG_FORMAT", "yaml", "--log-format"),
        ("STARLING_TOKEN_LIFE_S", "0", "token_life_s"),
        ("STARLING_REFRESH_LIFE_S", "1", "refresh_life_s"),
        ("STARLING_TRUSTED_PROXIES", "everybody", "trusted_proxies"),
        ("STARLING_PUBLIC_URL", "chat.example.org", "STARLING_PUBLIC_URL"),
        ("STARLING_CONFIG", "nowhere.toml", "nowhere.toml"),
        ("DATABASE_URL", "mysql://a:s3cret-word@b/c", "DATABASE_URL"),
        ("DATABASE_URL", "postgres://a:s3cret-word@b:port/c", "DATABASE_URL"),
        ("REDIS_URL", "redis://:s3cret-word@localhost", "REDIS_URL"),
    ] {
        let home = Home::new().with(key, value);
        let finished = home.run(&[]).await;
        finished.failed(2, &[word]);
        assert!(!finished.err.contains("s3cret-word"), "{}", finished.err);
        assert!(!home.path().join("data").exists(), "no data directory was created");
    }
}

#[tokio::test]
async fn a_bad_file_ends_with_2_and_names_the_key() {
    let home = Home::new();
    for (text, word) in [
        ("colour = 1", "colour"),
        ("page_max = \"many\"", "page_max"),
        ("page_max = 0", "page_max"),
        ("page_max = ", "starling.toml"),
        ("[section]\npage_max = 1", "section"),
        ("log_format = \"yaml\"", "log_format"),
        ("listen = \"nonsense\"", "listen"),
        ("database_url = \"mysql://b/c\"", "DATABASE_URL"),
    ] {
        let path = file(&home, text);
        home.run(&["--config", &path]).await.failed(2, &[word]);
    }
}

#[tokio::test]
async fn a_flag_wins_over_the_environment_and_that_over_the_file() {
    /// The maximum number of entries on a page, to which the server clamps a larger `limit`.
    async fn page_max(home: &Home, arguments: &[&str]) -> usize {
        let server = home.serve_with(arguments).await;
        let user =
            home.users(&server.base, &format!("u{}", rand::random::<u32>()), 6).await.remove(0);
        let page = user.get("/users?limit=1000").await.expect(200);
        server.stop().await;
        page["users"].as_array().unwrap().len()
    }

    let home = Home::new();
    let path = file(&home, "page_max = 3");
    assert_eq!(page_max(&home, &["--config", &path]).await, 3);

    let home = home.with("STARLING_CONFIG", &path);
    assert_eq!(page_max(&home, &[]).await, 3);

    let home = home.with("STARLING_PAGE_MAX", "4");
    assert_eq!(page_max(&home, &[]).await, 4);
    assert_eq!(page_max(&home, &["--page-max", "5"]).await, 5);
    assert_eq!(page_max(&home, &["serve", "--page-max", "2"]).await, 2);
}

#[tokio::test]
async fn the_printed_file_is_a_file_that_works_and_names_every_flag() {
    let home = Home::new();
    let printed = home.run(&["config"]).await.fine();
    let path = file(&home, &printed);
    home.serve_with(&["--config", &path]).await.stop().await;

    let help = home.run(&["--help"]).await.fine();
    let keys: Vec<&str> = printed
        .lines()
        .filter_map(|line| line.strip_prefix('#')?.split_once(" = "))
        .map(|it| it.0)
        .collect();
    assert!(keys.len() > 20, "{keys:?}");
    for key in keys {
        let flag = format!("--{}", key.replace('_', "-"));
        assert!(help.contains(&flag), "{flag} is not in --help");
    }
}
