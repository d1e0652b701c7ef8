from __future__ import annotations

import pytest

from nbdist.notebook.commands import cell_label, with_first_line


@pytest.mark.parametrize(("text", "label"), [("12", "In[12]"), ("In[3]", "In[3]"), ("run", "run")])
def test_a_number_means_the_cell_with_it(text: str, label: str) -> None:
    assert cell_label(text) == label


def test_the_line_of_the_magic_counts_as_the_first() -> None:
    assert with_first_line("0,2 -a", "x = 1\n") == "# %%dist 0,2 -a\nx = 1\n"
    assert with_first_line("", "x = 1\n") == "# %%dist\nx = 1\n"
    assert with_first_line("0", "\n%%bash\nls\n") == "\n%%bash\nls\n"
