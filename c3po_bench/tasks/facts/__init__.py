"""Our own task group: school-level facts in many relations, made from the tables in this folder."""
