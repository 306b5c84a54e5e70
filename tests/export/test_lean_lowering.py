"""What lowering to ExecuTorch changes in the libraries while it runs is put back, however it ends."""

import executorch.backends.xnnpack.xnnpack_preprocess as preprocess
import pytest
import torch.fx.traceback
from f2i_export.replaced_attribute import replaced
from f2i_export.to_executorch import lean_lowering


def test_the_libraries_are_as_before_after_an_error():
    before = torch.fx.traceback.NodeSource, preprocess.XNNPACKPassManager
    with pytest.raises(RuntimeError), lean_lowering():
        inside = torch.fx.traceback.NodeSource, preprocess.XNNPACKPassManager
        raise RuntimeError
    assert (torch.fx.traceback.NodeSource, preprocess.XNNPACKPassManager) == before
    assert all(a is not b for a, b in zip(inside, before, strict=True))


def test_a_name_that_the_library_no_longer_has_is_an_error():
    with pytest.raises(AttributeError), replaced(torch.fx.traceback, "NoSuchName", object):
        pass
    assert not hasattr(torch.fx.traceback, "NoSuchName")
