"""A campaign as a command has read it: its file, its folder, its members, or those of one job of a submission."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from lossmap.campaign.digests import DigestCache
from lossmap.campaign.folder import CampaignFolder
from lossmap.campaign.member import Member
from lossmap.cli.campaign_file import CampaignFile
from lossmap.cli.campaign_inputs import LastInputs
from lossmap.cli.settings import UsageError
from lossmap.parallel.shards import Shard
from lossmap.special_files import plain_text


@dataclass(frozen=True)
class Campaign:
    """A campaign's file, its folder and its members, as a command has read them.

    missing  a sentence for each member of which a file is gone
    """

    file: CampaignFile
    folder: CampaignFolder
    members: tuple[Member, ...]
    missing: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: str, text: str | None = None, computes: bool = True) -> Campaign:
        """Read the file and expand it; digests of its inputs come from the folder's cache. Raises UsageError.

        text      of a file that is not yet written
        computes  whether members are to be computed, so that their files must be there
        """
        file = CampaignFile.read(path, text)
        folder = CampaignFolder(file.folder)
        digests = DigestCache(folder.digests)
        inputs, missing = LastInputs(folder.path / "inputs.json"), list[str]()
        members = tuple(file.members(digests, inputs, None if computes else missing))
        digests.save()
        inputs.save()
        return cls(file, folder, members, tuple(missing))

    def part(self, batch: str | None, part: str | None) -> Campaign:
        """The members of a submission, or of one job of its array. Raises UsageError."""
        members = list({member.digest: member for member in self.members}.values())
        if batch is not None:
            try:
                digests = [str(digest) for digest in json.loads(plain_text(batch))["members"]]
            except OSError as error:
                raise UsageError(f"--batch {batch} cannot be read: {error.strerror or error}") from None
            except (ValueError, KeyError, TypeError, RecursionError):
                raise UsageError(f"--batch {batch} is no list of members as submit writes it") from None
            known = {member.digest: member for member in members}
            members = [known[digest] for digest in digests if digest in known]
        if part is not None:
            shard = Shard.parse(part)
            members = members[shard.index - 1 :: shard.count]
        if batch is None and part is None:
            return self
        return replace(self, members=tuple(members))
