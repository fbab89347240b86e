"""`--weights`: public weights from any checkpoint of any stage, without ranks."""

from tests.ranks import run_command
from tests.training import Recipe, equal_to_the_bit
from vit import weights


def test_weights_of_every_checkpoint_at_zero_3(pretraining: Recipe):
    recipe = pretraining.but(
        engine__zero_stage=3, engine__precision="bf16", run__checkpoint_every_steps=4, run__keep_checkpoints=3
    )
    done = recipe.run(ranks=2)
    code, stdout, stderr = run_command("pretrain", [*recipe.arguments, "--weights"])
    assert (code, stdout) == (0, f"weights {done.folder / 'weights-00000010'}\n"), stderr
    assert equal_to_the_bit(weights.load(done.folder / "weights-00000010"), done.weights)

    code, _, _ = run_command("pretrain", [*recipe.arguments, "--weights", "4"])
    assert code == 0
    earlier = done.folder / "weights-00000004"
    assert not equal_to_the_bit(weights.load(earlier), done.weights)
    header = weights.read_header(earlier)
    assert header.provenance["step"] == 4
    assert header.classes == ("0", "1", "2", "3", "4", "5")
    assert header.head.kind == "mlp"

    code, _, stderr = run_command("pretrain", [*recipe.arguments, "--weights", "5"])
    assert code == 2
    assert "no checkpoint of step 5; there are 4, 8, 10" in stderr

    tensors = done.folder / "checkpoints/step-00000008/rank-00001.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1])
    code, _, stderr = run_command("pretrain", [*recipe.arguments, "--weights", "8"])
    assert code == 2
    assert "rank-00001.safetensors has" in stderr
    assert not (done.folder / "weights-00000008").exists()


def test_nothing_to_export(pretraining: Recipe):
    code, _, stderr = run_command("pretrain", [*pretraining.arguments, "--weights"])
    assert code == 2
    assert "holds no finished checkpoint; train first" in stderr


def test_a_head_wider_than_the_set_leaves_the_classes_unnamed(pretraining: Recipe):
    done = pretraining.but(head__num_classes=9, run__steps=2).run()
    header = weights.read_header(done.folder / "weights")
    assert (header.head.num_classes, header.classes) == (9, ())
