"""A rule table that names the specialty of a MedQuAD row from its source and its disease.

It serves two ends: it labels a fresh conversion of the public MedQuAD repository, and it lets an
adapter also learn from rows that carry no label (MedlinePlus topics, further NIHSeniorHealth rows).
Disease names come from MedQuAD (A. Ben Abacha and D. Demner-Fushman, BMC Bioinformatics 2019).
"""

from __future__ import annotations

import re

#: Institutes whose rows all belong to one specialty, unless EXCEPTIONS says otherwise.
BY_SOURCE: dict[str, str] = {
    "CancerGov": "oncology",
    "NINDS": "neurology",
    "CDC": "infectious_disease",
    "GHR": "genetics",
    "GARD": "genetics",
}

#: (source, disease in lower case) that no specialty takes although its source has one.
EXCEPTIONS: frozenset[tuple[str, str]] = frozenset({("CDC", ""), ("CDC", "chronic fatigue syndrome (cfs)")})

_NHLBI: dict[str, str] = {
    "cardiology": (
        "aneurysm|angina|arrhythmia|atherosclerosis|atrial fibrillation|cardiogenic shock"
        "|cardiomyopathy|carotid artery|coronary|deep vein thrombosis|electrocardiogram"
        "|endocarditis|heart|holes in the heart|high blood pressure|high blood cholesterol"
        "|hypotension|kawasaki|long qt|marfan|mitral|patent ductus|pericarditis"
        "|peripheral art|raynaud|stroke|sudden cardiac|tetralogy|varicose|vasculitis"
    ),
    "hematology": (
        "anemia|blood clotting|disseminated intravascular|hemochromatosis|hemophilia"
        "|thrombocyt|polycythemia|sickle cell|thalassemia|von willebrand|antiphospholipid"
        "|excessive blood clotting|bleeding|rh incompatibility"
    ),
    "pulmonology": (
        "ards|alpha-1|asthma|bronchi|bronchopulmonary|interstitial lung|copd|cough"
        "|cystic fibrosis|hypersensitivity pneumonitis|pulmonary|obesity hypoventilation"
        "|pleurisy|pneumonia|respiratory|sarcoidosis|sleep apnea|lymphangioleiomyomatosis"
        "|primary ciliary"
    ),
    "endocrinology": "metabolic syndrome|overweight and obesity",
    "neurology": "insomnia|restless legs|narcolepsy",
}

_NIDDK: dict[str, str] = {
    "nephrology": (
        "kidney|nephr|renal|urin|bladder|prostat|peyronie|erectile|cystocele|perineal"
        "|hemolytic uremic|henoch|proteinuria|vesicoureteral|dialysis|goodpasture|glomerul"
        "|hematuria"
    ),
    "hematology": "anemia of inflammation|anemia in chronic|hemochromatosis",
    "endocrinology": (
        "diabet|thyroid|cushing|adrenal|addison|acromegaly|graves|hashimoto|hypoglycemia"
        "|insulin|growth hormone|human growth|pituitary|prolactin|endocrine|turner"
    ),
    "gastroenterology": (
        "alagille|hepat|biliary|celiac|diarrhea|crohn|vomiting|dermatitis herpetiformis|dumping"
        "|fecal|gas\\b|gastr|hemorrhoid|hernia|intestin|bowel|colitis|steatohep|cholangitis"
        "|whipple|wilson|zollinger|hirschsprung|ulcer|reflux|constipation|gallstone|pancrea"
        "|cirrhosis|diverticul|lactose|appendicitis|liver|heartburn|indigestion|foodborne"
    ),
}

_SENIOR: dict[str, str] = {
    "cardiology": "heart|high blood pressure|peripheral arterial|stroke",
    "oncology": "cancer|leukemia",
    "neurology": "parkinson|alzheimer",
    "pulmonology": "copd|lung",
    "nephrology": "kidney",
    "infectious_disease": "shingles|flu",
    "endocrinology": "diabetes",
    "geriatrics": (
        "macular|alcohol|balance|cataract|dry eye|dry mouth|hearing|knee replacement|hip|low vision"
        "|medicare|osteoporosis|paget|prescription|falls|glaucoma|older|aging|senior|caregiv"
        "|osteoarthritis|periodontal|taste|smell"
    ),
}

_TOPICS: dict[str, str] = {
    "geriatrics": (
        "alzheimer's caregivers|assisted living|assistive devices|balance problems|bone density"
        "|caregivers|cataract|delirium|dementia|dentures|dry mouth|elder abuse|end of life"
        "|exercise for seniors|falls|glaucoma|healthy aging|hearing disorders|hip replacement"
        "|home care|hospice|knee replacement|macular degeneration|medicare|memory"
        "|mild cognitive|nursing homes|nutrition for seniors|osteoporosis|osteoarthritis"
        "|palliative|pressure sores|seniors' health|vision impairment|walking problems|skin aging"
        "|advance directives|paget's disease of bone"
    ),
    "oncology": (
        "cancer|leukemia|lymphoma|melanoma|neuroblastoma|mesothelioma|myeloma|sarcoma|tumor"
        "|carcinoid|hodgkin|wilms|mammography|mastectomy|radiation therapy|myelodysplastic"
    ),
    "cardiology": (
        "aneurysm|angina|angioplasty|arrhythmia|atherosclerosis|atrial|blood pressure"
        "|blood thinners|cardiac|cholesterol|coronary|dash diet|endocarditis|heart (?!burn)"
        "|heart$|pacemaker|pericardial|peripheral arterial|statins|triglycerides"
        "|vascular diseases|deep vein|chest pain|vasculitis"
    ),
    "neurology": (
        "brain|cerebral palsy|epilep|seizures|headache|migraine|multiple sclerosis|movement dis"
        "|myasthenia|nerve|neurolog|neuromuscular|parkinson|spinal cord|stroke|syringomyelia"
        "|tremor|trigeminal|transient ischemic|cerebellar|chiari|complex regional|concussion"
        "|encephalitis|hydrocephalus|guillain|dizziness|restless legs|paralysis|leukodystroph"
        "|progressive supranuclear|spinal stenosis|thoracic outlet|insomnia|degenerative nerve"
    ),
    "pulmonology": (
        "asthma|bronch|copd|emphysema|lung|pulmonary|pneumonia|breathing|cough$|sleep apnea"
        "|collapsed lung|sarcoidosis|respiratory|pleural|oxygen|tracheal|alpha-1|croup|cystic fib"
    ),
    "hematology": (
        "anemia|bleeding disorders|blood$|blood clots|blood count|blood disorders|blood transf"
        "|bone marrow|g6pd|hemophilia|platelet|sickle cell|spleen|thalassemia|iron$|bruises"
        "|hemochromatosis|lymphatic"
    ),
    "endocrinology": (
        "a1c|adrenal gland|blood sugar|cushing|diabet(?!.*kidney)|endocrine|hormones"
        "|hyperglycemia|hypoglycemia|parathyroid|pituitary|prediabetes|thyroid|growth disorders"
        "|hormone replacement|islet cell|metabolic|polycystic ovary|pheochromocytoma|steroids"
    ),
    "nephrology": (
        "bladder|creatinine|dialysis|kidney|interstitial cystitis|ureteral|urethral|urin"
        "|prostate dis|enlarged prostate|fluid and electrolyte"
    ),
    "gastroenterology": (
        "abdominal pain|appendicitis|bile duct dis|bowel|celiac|colonic|colonoscopy|constipation"
        "|crohn|diarrhea|digestive|diverticul|endoscopy|esophagus|gerd|gallbladder dis|gallstone"
        "|gas$|gastro|heartburn|hemorrhoid|hepatitis|hernia|hiatal|intestinal obst|liver|malabsorp"
        "|nausea|pancrea|peptic|rectal|stomach dis|small intestine|jaundice|cirrhosis|gluten"
        "|ulcerative|ostomy|helicobacter|peritoneal|anal disorders"
    ),
    "infectious_disease": (
        "anthrax|aspergillosis|infection|bird flu|chagas|chickenpox|chikungunya|cholera|cold sores"
        "|common cold|dengue|diphtheria|ebola|fifth disease|flu$|flu shot|herpes|gonorrhea|hiv"
        "|head lice|lice|hemorrhagic fevers|histoplasmosis|immunization|infectious|legionnaires"
        "|leishmaniasis|lyme|mrsa|malaria|measles|mening|mononucleosis|monkeypox|mumps|parasitic"
        "|pinworms|plague|polio|rabies|rubella|scabies|sepsis|shingles|smallpox|syphilis|tetanus"
        "|tick bites|tuberculosis|valley fever|west nile|whooping|zika|toxoplasmosis|h1n1"
        "|cat scratch|cryptosporid|rotavirus|antibiotic resist|swine"
    ),
    "genetics": (
        "birth defects|down syndrome|ehlers|fragile x|friedreich|gaucher|gene|huntington"
        "|klinefelter|marfan|neurofibromatosis|phenylketonuria|prader|tay-sachs|tuberous"
        "|turner|usher|newborn screening|family history|dwarfism|rare diseases"
    ),
}

_BY_DISEASE: dict[str, dict[str, re.Pattern[str]]] = {
    source: {specialty: re.compile(pattern) for specialty, pattern in table.items()}
    for source, table in {
        "NHLBI": _NHLBI,
        "NIDDK": _NIDDK,
        "NIHSeniorHealth": _SENIOR,
        "MPlusHealthTopics": _TOPICS,
    }.items()
}


def specialty_of(source: str, focus: str) -> str | None:
    """Name the specialty of a row of MedQuAD, or None.

    ``source`` is the institute as MedQuAD spells it ("NHLBI"), ``focus`` the disease of the
    document. The first specialty of a table whose pattern occurs in the disease wins.
    """
    disease = focus.strip().lower()
    if (source, disease) in EXCEPTIONS:
        return None
    if source in BY_SOURCE:
        return BY_SOURCE[source]
    for specialty, pattern in _BY_DISEASE.get(source, {}).items():
        if pattern.search(disease):
            return specialty
    return None
