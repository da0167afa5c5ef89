//! Circles of imports between the files of one directory.

use std::collections::{BTreeMap, BTreeSet};

use crate::lexer::{self, Lexed};

/// The files of one directory below `src/`: the name of the module that each belongs to, and its
/// text. `mod` is the file that declares the others. A file of a subdirectory belongs to the module
/// of the subdirectory.
pub struct Directory<'a> {
    /// The path of the module, such as `cluster::redis`.
    pub path: &'a str,
    /// The name of the module and the text of each file.
    pub files: &'a [(&'a str, &'a str)],
}

impl Directory<'_> {
    /// The modules that import each other in circles, and the modules that import them. Unless
    /// `strict`, a file may import an item that `mod` defines itself, so that the methods of a type
    /// can be spread over files.
    pub fn in_circles(&self, strict: bool) -> Vec<String> {
        let mut imports = self.imports();
        if !strict {
            imports.remove("mod");
        }
        loop {
            let is_leaf =
                |imported: &BTreeSet<String>| imported.iter().all(|it| !imports.contains_key(it));
            let leaves: Vec<String> = imports
                .iter()
                .filter(|(_, imported)| is_leaf(imported))
                .map(|(name, _)| name.clone())
                .collect();
            if leaves.is_empty() {
                return imports.into_keys().collect();
            }
            imports.retain(|name, _| !leaves.contains(name));
        }
    }

    /// The modules that each module imports. An item that `mod` re-exports counts as an import of
    /// the module that defines it; `mod` itself is imported for its own items only.
    fn imports(&self) -> BTreeMap<String, BTreeSet<String>> {
        let names: BTreeSet<&str> = self.files.iter().map(|(name, _)| *name).collect();
        let home = self.homes(&names);

        let mut imports: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (name, text) in self.files {
            let code = Lexed::new(text).code;
            let mut paths = lexer::paths_after(&code, &format!("crate::{}::", self.path));
            if *name != "mod" {
                paths.extend(lexer::paths_after(&code, "super::"));
            }
            let imported = imports.entry((*name).to_owned()).or_default();
            if *name == "mod" {
                imported.extend(names.iter().filter(|it| **it != "mod").map(ToString::to_string));
            }
            for path in paths.iter().filter(|path| !["super", "mutants"].contains(&path.as_str())) {
                let target = if names.contains(path.as_str()) {
                    path.as_str()
                } else {
                    home.get(path).map_or("mod", String::as_str)
                };
                if target != *name {
                    imported.insert(target.to_owned());
                }
            }
        }
        imports
    }

    /// For each item that `mod` names as a part of a module, that module.
    fn homes(&self, names: &BTreeSet<&str>) -> BTreeMap<String, String> {
        let Some((_, text)) = self.files.iter().find(|(name, _)| *name == "mod") else {
            return BTreeMap::new();
        };
        let code = Lexed::new(text).code;
        let of_module = |name: &&str| {
            let items = lexer::paths_after(&code, &format!("{name}::"));
            items.into_iter().map(|item| (item, (*name).to_owned())).collect::<Vec<_>>()
        };
        names.iter().filter(|name| **name != "mod").flat_map(of_module).collect()
    }
}
