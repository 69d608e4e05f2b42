//! The pages of `docs/`, whose examples run as doc tests, and the contract matrix, whose tests must
//! exist. They are here and not in a published crate, which is packaged without them.

macro_rules! pages {
    ($($page:ident $file:literal),* $(,)?) => {
        $(
            #[cfg(doctest)]
            #[doc = include_str!(concat!("../docs/", $file))]
            mod $page {}
        )*
    };
}

pages! {
    choosing_a_chain "choosing-a-chain.md",
    contracts_of_layers "contracts.md",
    guide "guide.md",
    jobs "jobs.md",
    moving_from_other_tools "moving-from-other-tools.md",
    proof "proof.md",
    quotas_and_tiers "quotas-and-tiers.md",
    two_replicas "two-replicas.md",
    what_a_call_can_cost "what-a-call-can-cost.md",
}

// A test that is renamed or removed leaves a law without its proof, and nobody would notice.
#[cfg(test)]
mod contracts {
    use std::collections::BTreeSet;
    use std::path::{Path, PathBuf};

    const PAGE: &str = include_str!("../docs/contracts.md");
    const ORDERS: &str = include_str!("../crates/tower-gemini/src/orders.md");
    const LAWS: [&str; 7] =
        ["readiness", "clone", "cancel", "backpressure", "errors", "deadline", "charge"];

    /// The part under the heading that begins so, and the part before all headings for "".
    fn section(title: &str) -> &'static str {
        let starts = |part: &&str| part.to_lowercase().starts_with(title);
        PAGE.split("\n## ").skip(usize::from(!title.is_empty())).find(starts).unwrap_or_default()
    }

    fn cells(line: &'static str) -> Vec<&'static str> {
        let row = line.strip_prefix('|').and_then(|line| line.strip_suffix('|'));
        row.into_iter().flat_map(|row| row.split('|').map(str::trim)).collect()
    }

    /// What stands between backticks.
    fn code(text: &'static str) -> impl Iterator<Item = &'static str> {
        text.split('`').skip(1).step_by(2)
    }

    /// The layers in the order of the stack, by the table of their orders.
    fn layers() -> Vec<&'static str> {
        let name = |line| code(cells(line).get(1).copied()?).next();
        ORDERS.lines().take_while(|line| !line.starts_with("Why")).filter_map(name).collect()
    }

    /// The rows of a part's table of layers, without the layer's own cell.
    fn rows(part: &'static str) -> Vec<(&'static str, Vec<&'static str>)> {
        let row = |line| {
            let mut cells = cells(line).into_iter();
            let layer = code(cells.next()?).next().filter(|name| !name.contains('/'))?;
            Some((layer, cells.collect()))
        };
        part.lines().filter_map(row).collect()
    }

    /// The numbers behind "gap " in a text.
    fn gaps(text: &'static str) -> impl Iterator<Item = usize> {
        let number = |rest: &'static str| rest.split("**").next()?.parse().ok();
        text.split("**gap ").skip(1).filter_map(number)
    }

    /// The file that a name on the page stands for.
    fn path(file: &str) -> Option<PathBuf> {
        let directory = PAGE.lines().map(cells).find_map(|row| match row[..] {
            [prefix, directory] => {
                let rest = file.strip_prefix(prefix.trim_matches('`'))?;
                Some(Path::new(directory.trim_matches('`')).join(rest))
            }
            _ => None,
        })?;
        Some(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(directory))
    }

    fn has_test(text: &str, name: &str) -> bool {
        let lines: Vec<_> = text.lines().map(str::trim).collect();
        let heads = [format!("fn {name}("), format!("async fn {name}(")];
        let begins = |line: &&str| heads.iter().any(|head| line.starts_with(head.as_str()));
        let Some(at) = lines.iter().position(begins) else { return false };
        let above = lines[..at].iter().rev();
        above
            .take_while(|line| line.starts_with("#[") || line.starts_with("//"))
            .any(|line| line.starts_with("#[test]") || line.starts_with("#[tokio::test"))
    }

    #[test]
    fn the_contract_matrix_names_tests_that_exist() {
        let mut named = 0;
        for name in code(PAGE) {
            let Some((file, function)) = name.split_once("::") else { continue };
            let text = path(file).and_then(|path| std::fs::read_to_string(path).ok());
            assert!(text.is_some_and(|text| has_test(&text, function)), "no such test: {name}");
            named += 1;
        }
        assert!(named > 100, "{named} tests were found on the page");
        assert!(!has_test("#[test]\nfn another() {}", "a_test"));
        assert!(!has_test("fn a_helper() {}", "a_helper"));
    }

    #[test]
    fn every_layer_has_a_row_under_every_law_and_the_matrix_sums_them_up() {
        let layers = layers();
        assert_eq!(layers.len(), 15, "{layers:?}");
        let head = section("").lines().map(cells).find(|cells| !cells.is_empty());
        assert_eq!(head.unwrap_or_default()[1..], LAWS);
        let matrix = rows(section(""));
        assert_eq!(matrix.iter().map(|(layer, _)| *layer).collect::<Vec<_>>(), layers);
        let mut named = BTreeSet::new();
        for (law, title) in LAWS.iter().enumerate() {
            let rows = rows(section(title));
            assert_eq!(rows.iter().map(|(layer, _)| *layer).collect::<Vec<_>>(), layers, "{title}");
            for ((layer, row), (_, marks)) in rows.iter().zip(&matrix) {
                let [tests, rest] = row[..] else { panic!("{title}, {layer}: {row:?}") };
                named.extend(gaps(rest));
                let is_tested = code(tests).any(|name| name.contains("::"));
                let mark = match (is_tested, gaps(rest).next().is_some()) {
                    (true, false) => "yes",
                    (true, true) => "part",
                    (false, true) => "**gap**",
                    (false, false) => "—",
                };
                assert_eq!(marks[law], mark, "{title}, {layer}");
                assert_eq!(rest.starts_with('—'), mark == "—", "{title}, {layer}: a reason");
            }
        }
        let number = |line: &str| line.split_once(". ")?.0.parse::<usize>().ok();
        let listed: Vec<_> = section("gaps").lines().filter_map(number).collect();
        assert_eq!(listed, (1..=listed.len()).collect::<Vec<_>>(), "numbered in order");
        assert_eq!(named.into_iter().collect::<Vec<_>>(), listed, "each gap is listed and named");
    }
}

// Simulated or not, an example is copied: a model with an end would take its readers there.
#[cfg(test)]
mod examples {
    use std::fs;
    use std::path::{Path, PathBuf};

    use tower_gemini::catalog::Catalog;

    fn files(dir: &Path, found: &mut Vec<PathBuf>) {
        for path in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
            let is_text =
                |path: &Path| matches!(path.extension(), Some(end) if end == "rs" || end == "toml");
            match path.is_dir() {
                true => files(&path, found),
                false => found.extend(Some(path).filter(|path| is_text(path))),
            }
        }
    }

    #[test]
    fn no_example_names_a_model_whose_end_is_known() {
        let mut found = Vec::new();
        files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples"), &mut found);
        let mut named = 0;
        for path in found {
            let text = fs::read_to_string(&path).unwrap();
            // The demonstration shows what becomes of one, and a test what it cannot draw.
            let may_end =
                path.ends_with("quickstart/src/demo.rs") || path.ends_with("tests/app.rs");
            let is_id = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
            let words = text.split(|c| !is_id(c)).map(|word| word.trim_matches('.'));
            for model in words.filter_map(|word| Catalog::builtin().lookup(word)) {
                named += 1;
                let has_end = model.retired.is_some();
                assert!(may_end || !has_end, "{}: {}", path.display(), model.id);
            }
        }
        assert!(named > 30, "{named}");
    }
}

// What no test notices is in one list, and a line of it that outlives its code would excuse another.
#[cfg(test)]
mod mutants {
    use std::fs;
    use std::path::Path;

    #[test]
    fn every_surviving_mutant_is_explained_where_it_stands() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let list = fs::read_to_string(root.join(".ci/survivors")).unwrap();
        let mut explained = 0;
        for line in list.lines().filter(|line| !line.starts_with('#')) {
            let [file, code, change, why] = line.split(" | ").collect::<Vec<_>>()[..] else {
                panic!("FILE | CODE | CHANGE | WHY: {line}");
            };
            let text = fs::read_to_string(root.join(file)).unwrap();
            let found = text.lines().filter(|line| line.trim() == code).count();
            assert_eq!(found, 1, "{file} has once: {code}");
            assert!(!change.is_empty() && !why.is_empty(), "{line}");
            explained += 1;
        }
        assert!(explained > 0, "the list was read");
    }
}
