from benchmarks.coverage import by_package


def test_a_package_counts_the_statements_of_all_folders_in_it() -> None:
    def file(statements: int, run: int) -> dict:
        return {"summary": {"num_statements": statements, "covered_lines": run}}

    found = by_package({"covidnet/a.py": file(6, 6), "covidnet/data/b.py": file(4, 2), "serving/empty.py": file(0, 0)})
    assert found == {
        "covidnet": {"statements": 10, "run": 8, "share": 0.8},
        "covidnet/data": {"statements": 4, "run": 2, "share": 0.5},
    }
