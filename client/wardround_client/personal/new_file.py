"""A file to predict for. Reader processes import this module, so it goes without torch: two seconds of each process."""

from __future__ import annotations

from dataclasses import dataclass, fields

from wardround_client.intake.dicom import instance_of
from wardround_client.intake.pictures import NIFTI
from wardround_client.intake.pseudonyms import Pseudonyms
from wardround_client.intake.recipe import ImageRecipe
from wardround_client.intake.source import Instance, Rejection
from wardround_client.intake.sources.dicom_folder import DicomFile
from wardround_client.intake.sources.image_folder import Picture
from wardround_client.personal.original import Placed, of_dicom, of_picture

LEAST_SIDE_PX = 8
PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", *NIFTI)


@dataclass(frozen=True)
class NewFile(DicomFile):
    """A file to predict for. A picture is a patient of its own: nothing in it says whose it is.

    places: whether the answer is about places, which go back to the image as it was.
    """

    places: bool = False

    def read(self, recipe: ImageRecipe, pseudonyms: Pseudonyms) -> Instance | Rejection:
        """As the intake reads it, but for images of so few pixels that nothing can be seen on them."""
        picture = self.path.name.lower().endswith(PICTURES) and not self.unreadable
        if picture:
            found = Picture(self.path, self.name, self.name, 0, ()).read(recipe, pseudonyms)
        elif self.unreadable:
            return super().read(recipe, pseudonyms)
        else:
            found = instance_of(self.path, recipe, pseudonyms, self.rules, least_side_px=LEAST_SIDE_PX)
        if isinstance(found, Rejection) or not self.places:
            return found
        originals, source = (
            (of_picture(self.path, recipe), None) if picture else of_dicom(self.path, recipe, self.rules)
        )
        known = {each.name: getattr(found, each.name) for each in fields(Instance)}
        return Placed(**known, originals=originals, source=source)
