"""Running a program that was read: constants, plan, evaluator."""
