"""What each sentence tells, by the project's own rules."""

import numpy as np
import pytest

from data_pipelines.findings import FINDINGS, NO_FINDING, NOT_GIVEN
from data_pipelines.reports.extract import Extractor

SHORT = {
    "ecm": "Enlarged Cardiomediastinum", "heart": "Cardiomegaly", "lesion": "Lung Lesion",
    "opacity": "Lung Opacity", "edema": "Edema", "consolidation": "Consolidation",
    "pneumonia": "Pneumonia", "atelectasis": "Atelectasis", "ptx": "Pneumothorax",
    "effusion": "Pleural Effusion", "pleura": "Pleural Other", "fracture": "Fracture",
    "device": "Support Devices",
}  # fmt: skip

# sentence | finding=code ...; what is not named is not given.
CASES = """
No evidence of pneumothorax or pleural effusion. | ptx=0 effusion=0
No pneumothorax, effusion or consolidation. | ptx=0 effusion=0 consolidation=0
Without focal consolidation, effusion, or pneumothorax. | consolidation=0 effusion=0 ptx=0
No focal consolidation, large effusion, or pneumothorax. | consolidation=0 effusion=0 ptx=0
There are no effusions or pneumothoraces. | effusion=0 ptx=0
Heart size is normal. | heart=0
Heart is normal in size. | heart=0
Heart size is top normal. | heart=0
Heart size is borderline. | heart=-1
The cardiac silhouette is enlarged. | heart=1
The cardiac silhouette is not enlarged. | heart=0
The cardiac silhouette is within normal limits. | heart=0
The cardiac silhouette is mildly enlarged but stable. | heart=1
Stable mildly enlarged cardiac silhouette. | heart=1
Heart size is difficult to assess. | heart=-1
Stable cardiomediastinal silhouette. |
Enlargement of the cardiac silhouette persists. | heart=1
No cardiac enlargement. | heart=0
The heart may be mildly enlarged. | heart=-1
Cardiac, mediastinal and hilar contours are normal. | heart=0 ecm=0
Heart size and mediastinal contours are within normal limits. | heart=0 ecm=0
Normal heart, lungs, hila and mediastinum. | heart=0 ecm=0
Heart is normal in size, and the mediastinum is widened. | heart=0 ecm=1
Mediastinal contours are unremarkable and the heart is enlarged. | ecm=0 heart=1
The aortic contour is normal. |
The lungs are clear and the heart is enlarged. | heart=1
Clear lungs. |
The lungs are well expanded and clear. |
The lungs are otherwise clear. |
Lungs are clear without focal consolidation. | consolidation=0
The lungs are clear of consolidation. | consolidation=0
The pleural cavities are clear. |
There is fluid in the pleural cavity. | effusion=1
There is a thick-walled cavity in the right upper lobe. | lesion=1
Neither pneumothorax, hemothorax nor fractures are seen. | ptx=0 effusion=0 fracture=0
Cannot exclude small effusion. | effusion=-1
A small effusion cannot be excluded. | effusion=-1
Pneumonia is not excluded. | pneumonia=-1
Pneumonia cannot be ruled out. | pneumonia=-1
Pneumonia has been ruled out. | pneumonia=0
No new opacity. | opacity=0
No change in the moderate effusion. | effusion=1
No significant interval change in edema. | edema=1
Without significant change, the effusion is moderate. | effusion=1
Resolved pneumothorax. | ptx=0
The effusion has resolved. | effusion=0
Pneumothorax has resolved and effusion has decreased. | ptx=0 effusion=1
Effusion has decreased, and pneumothorax has resolved. | effusion=1 ptx=0
Resolving edema. | edema=1
Near complete resolution of the right effusion. | effusion=1
Interval resolution of the right effusion. | effusion=0
Previously seen consolidation is no longer seen. | consolidation=0
There is no longer evidence of pneumothorax. | ptx=0
May represent atelectasis versus pneumonia. | atelectasis=-1 pneumonia=-1
Opacity concerning for pneumonia. | opacity=1 pneumonia=-1
No opacity concerning for pneumonia. | opacity=0 pneumonia=0
No focal consolidation to suggest pneumonia. | consolidation=0 pneumonia=0
Bibasilar opacities likely atelectasis. | opacity=1 atelectasis=-1
No effusion, left base opacity likely atelectasis. | effusion=0 opacity=1 atelectasis=-1
Atelectasis is likely. | atelectasis=-1
Atelectasis or pneumonia at the right base. | atelectasis=-1 pneumonia=-1
Pneumonia is possible. | pneumonia=-1
Possible small effusion, no pneumothorax. | effusion=-1 ptx=0
No pneumothorax, possible small effusion. | ptx=0 effusion=-1
No pneumothorax, small left effusion. | ptx=0 effusion=1
No pneumothorax is seen, and moderate edema persists. | ptx=0 edema=1
Persistent small effusion, no pneumothorax. | effusion=1 ptx=0
Mild cardiomegaly and no edema. | heart=1 edema=0
Low lung volumes with bibasilar atelectasis but no effusion. | atelectasis=1 effusion=0
Pulmonary vascular congestion. | edema=-1
No vascular congestion. | edema=0
Consistent with mild interstitial edema. | edema=1
Blunting of the left costophrenic angle. | effusion=-1
The costophrenic angles are sharp. | effusion=0
Fluid in the pleural space. | effusion=1
Right hydropneumothorax. | ptx=1 effusion=1
Healed rib fractures. | fracture=1
No displaced fracture. | fracture=0
The ET tube has been removed. | device=0
Left-sided pacemaker. | device=1
Interval removal of the right chest tube; no pneumothorax. | device=0 ptx=0
Right PICC ends in the SVC, unchanged in position. | device=1
Evaluate for pneumonia. |
History of pneumonia. |
Plate-like atelectasis. | atelectasis=1
Active tuberculosis. |
Soft tissue edema of the chest wall. |
Small pericardial effusion. |
Vertebral body collapse. | fracture=1
Left lower lobe collapse. | atelectasis=1
Kerley B lines are present. | edema=1
The left paratracheal line is normal. |
Left upper lobe mass. | lesion=1
Massive effusion. | effusion=1
Hazy opacity at the base, and the right heart border is not visualized. | opacity=1
Biapical pleural thickening. | pleura=1
The pleura is mildly thickened at the apex. | pleura=1
The study is negative for pleural effusion. | effusion=0
No enlargement of the heart. | heart=0
Two films show a stable mildly enlarged cardiac silhouette. | heart=1
There is a widened mediastinum. | ecm=1
The cardiac silhouette has decreased but remains enlarged. | heart=1
The atelectasis has partly resolved. | atelectasis=1
The left lower lobe appears collapsed. | atelectasis=1
Rounded opacity may represent a mass. | opacity=1 lesion=-1
Nodular opacity at the right base. | opacity=1 lesion=1
Pacemaker leads end in the right ventricle. | device=1
Overlying ECG leads. |
The enlarged cardiac silhouette has resolved. | heart=0
An enlarged cardiac silhouette cannot be ruled out. | heart=-1
Heart size has normalized. | heart=0
Borderline widening of the mediastinum. | ecm=-1
Fluid is seen in the right pleural space. | effusion=1
There might be developing pneumonia. | pneumonia=-1
Pneumonia may be developing. | pneumonia=-1
Status post right pleural tube placement. | device=1
Enlarged cardiac silhouette, likely left ventricular prominence. | heart=1
No consolidation, effusion, and pneumothorax. | consolidation=0 effusion=0 ptx=0
Possible small effusion, cardiomegaly. | effusion=-1 heart=1
Heart size is not normal. | heart=-1
There is no effusion, pneumothorax is small. | effusion=0 ptx=1
Small effusion, pneumothorax has resolved. | effusion=1 ptx=0
Pneumothorax, effusion and edema have resolved. | ptx=0 effusion=0 edema=0
The lingula is partially collapsed. | atelectasis=1
No edema, focal lung consolidation, pleural fluid, or pneumothorax. | edema=0 consolidation=0 effusion=0 ptx=0
The heart is smaller since the prior film, but still enlarged. | heart=1
The patient has been extubated. | device=0
Interval placement of a chest tube with resolution of the pneumothorax. | device=1 ptx=0
No pneumothorax. Effusion unchanged. | ptx=0 effusion=1
Effusions are small if any. | effusion=-1
The effusion is not clearly seen. | effusion=-1
The heart is top-normal to mildly enlarged. | heart=-1
"""
PAIRS = [
    tuple(part.strip() for part in line.split("|"))
    for line in CASES.strip().splitlines()
]


@pytest.fixture(scope="module")
def extractor():
    return Extractor("medclip_jax")


@pytest.mark.parametrize(("sentence", "told"), PAIRS, ids=[s for s, _ in PAIRS])
def test_sentence(extractor, sentence, told):
    expected = {
        SHORT[name]: int(code) for name, code in (p.split("=") for p in told.split())
    }
    labels = extractor.label_sentence(sentence)
    assert labels.dtype == np.int8 and labels.shape == (14,)
    found = {
        name: int(code)
        for name, code in zip(FINDINGS[1:], labels[1:], strict=True)
        if code != NOT_GIVEN
    }
    assert found == expected


@pytest.mark.parametrize(
    ("sentence", "positive"),
    [
        ("The lungs are clear.", True),
        ("PA and lateral views were obtained.", True),
        ("Endotracheal tube in good position.", True),
        ("Small effusion.", False),
        ("Possible effusion.", False),
        ("Severe emphysema.", False),
        ("No emphysema.", True),
    ],
)
def test_no_finding(extractor, sentence, positive):
    code = extractor.label_sentence(sentence)[NO_FINDING]
    assert code == (1 if positive else NOT_GIVEN)


def test_every_finding_of_the_tables_is_found_alone(extractor):
    for index, name in enumerate(FINDINGS):
        if name not in ("No Finding", "Support Devices"):
            word = {"Lung Lesion": "nodule", "Pleural Other": "pleural plaque"}
            word["Enlarged Cardiomediastinum"] = "widened mediastinum"
            labels = extractor.label_sentence(f"{word.get(name, name)}.")
            assert labels[index] == 1, name
