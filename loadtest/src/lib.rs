//! A client of Starling, a record of what it did and saw, and a checker of that record.
