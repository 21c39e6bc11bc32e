"""Why a run kept nothing, and what to change, in one sentence."""

from posttrain.answers.filtering import Fate
from posttrain.answers.settings import CollectSettings
from posttrain.answers.tally import Tally


def why_nothing_was_kept(counts: Tally, settings: CollectSettings) -> str:
    """The counts by reason, and advice for the most frequent one."""
    if not counts.answers:
        return (
            f"none of the {counts.prompts} prompts was asked, all being too long for the teacher; raise its max_length "
            "or give shorter prompts"
        )
    firsts = {Fate.CUT_SHORT: f" (the first {counts.first_cut})", Fate.BROKEN: f" (the first: {counts.first_break})"}
    reasons = ", ".join(f"{number:,} {_SAID[fate]}{firsts.get(fate, '')}" for fate, number in counts.reasons.items())
    advice = {
        Fate.UNFINISHED: f"raise max_new_tokens, now {settings.max_new_tokens}",
        Fate.CUT_SHORT: (
            "raise that limit: max_turns or max_images in the recipe's 'environments', or the stage's max_length"
        ),
        Fate.BROKEN: "put the environment right",
        Fate.EMPTY: "look at the teacher's chat template and its thinking",
        Fate.MARKUP: "take a teacher that was trained on its chat template",
        Fate.THOUGHTS: f"set thinking, now '{settings.thinking}', to what the teacher's template can do",
        Fate.UNSCORED: "run `posttrain check` on the rewards and references",
        Fate.BELOW: f"lower min_reward, now {settings.min_reward}, ask more often, or take another teacher",
    }
    return (
        f"none of {counts.answers:,} answers to {counts.prompts:,} prompts was kept: {reasons}; "
        f"{next(advice[fate] for fate in counts.reasons if fate in advice)}"
    )


_SAID = {
    Fate.UNFINISHED: "were cut off by the token limit",
    Fate.CUT_SHORT: "were cut short by a limit of their episode",
    Fate.BROKEN: "broke down",
    Fate.EMPTY: "were empty",
    Fate.MARKUP: "held special tokens",
    Fate.THOUGHTS: "did not think as they were asked to",
    Fate.DUPLICATE: "were said before",
    Fate.UNSCORED: "got no score",
    Fate.BELOW: "earned less than min_reward",
}
